"""What the weights of a model are called, in memory and in the files of its family, and Hugging Face directories.

transformers may hold a family's weights otherwise than its files do: a mixture's experts are one parameter in memory
and a tensor each in a file, and names differ. What leaves the learner, into a directory or into an engine, has the
names and shapes of the files, made by the conversions with which `save_pretrained` makes them.
"""

from __future__ import annotations

import copy
import json
import shutil
from collections.abc import Collection, Iterable, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any, TypeAlias, cast

import torch
import transformers
from huggingface_hub import split_torch_state_dict_into_shards
from safetensors import safe_open
from torch import Tensor, nn
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import PrefixChange, revert_weight_conversion
from transformers.utils import cached_file

from workers.config import ModelConfig
from workers.engines import lora as adapters
from workers.engines.divergence import OutputLayer
from workers.engines.heads import TokenScores, output_layer_of
from workers.engines.hf_models import (
    DTYPES,
    ModelError,
    Module,
    auto_class,
    logit_transform,
    padding_token,
    reads_apart,
)
from workers.weights import save_tensors

SCORE = "score.weight"  # of a reward model, beside its decoder
Described: TypeAlias = Sequence[tuple[str, torch.dtype, tuple[int, ...]]]


# ------------------------------------------------------------------------------------------------ names in memory


def weight_names(module: Module) -> dict[str, Tensor]:
    """Every weight under the name that transformers gives it in memory: parameters, tied ones (`lm_head.weight`)
    included, as an engine that is not sent the tied head keeps its old one, and the buffers that a checkpoint holds.
    With adapters: the base's, and of a reward model the score layer that is trained.

    Raises:
        ModelError: of a reward model whose family has no reward models in transformers.
    """
    if isinstance(module, TokenScores):
        decoder = {_prefix(module) + name: weight for name, weight in _held(module.model).items()}
        return decoder | {SCORE: module.score.weight}
    return _held(module.model)


def _held(model: nn.Module) -> dict[str, Tensor]:
    parameters = adapters.base_names(model.named_parameters(remove_duplicate=False))
    passing = {
        f"{place}.{name}".removeprefix(".")
        for place, m in model.named_modules()
        for name in m._non_persistent_buffers_set
    }
    buffers = adapters.base_names((n, b) for n, b in model.named_buffers(remove_duplicate=False) if n not in passing)
    return {**parameters, **buffers}


def adapters_of(module: Module) -> dict[str, adapters.Adapter]:
    """Every adapter under the name that transformers gives in memory to the layer it is in."""
    prefix = _prefix(module) if isinstance(module, TokenScores) else ""
    return {prefix + name: adapter for name, adapter in adapters.adapters(module.model).items()}


def trained_whole(module: Module) -> dict[str, Tensor]:
    """What of a model with adapters is published as it is, and is no part of the base: a reward model's score layer."""
    return {name: weight for name, weight in weight_names(module).items() if weight.requires_grad}


def by_layer(weights: Mapping[str, Tensor]) -> list[dict[str, Tensor]]:
    """Neighbouring weights of one decoder layer together, so that one layer at a time is whole in memory."""
    groups: dict[str, dict[str, Tensor]] = {}
    for name, weight in weights.items():
        parts = name.split(".")
        layer = next((i for i, part in enumerate(parts) if part.isdigit()), None)
        key = name if layer is None else ".".join(parts[: layer + 1])
        groups.setdefault(key, {})[name] = weight
    return list(groups.values())


def _prefix(module: TokenScores) -> str:
    """Of the decoder's names in a reward model: `model.`, or as of GPT-2 `transformer.`."""
    empty, decoder = _reward_model(module), type(module.model)
    place = next((name for name, part in empty.named_modules() if type(part) is decoder), None)
    held = None if place is None else {f"{place}.{name}" for name in _held(module.model)} | {SCORE}
    if held != set(_held(empty)):
        raise ModelError(
            f"a reward model is a decoder with a `score` layer here, as of Qwen2 or Llama, and {type(empty).__name__} "
            "is none; use a model of another family"
        )
    return f"{place}."


@lru_cache(maxsize=1)
def _reward_model(module: TokenScores) -> Any:
    """The reward model that transformers would make of a decoder, without storage."""
    return _empty(cast(Any, module.model).config, scores=True)


def _empty(config: Any, *, scores: bool) -> Any:
    """A model without storage, of the class that a directory with this config is loaded as."""
    if not scores:
        with torch.device("meta"):
            return auto_class(config).from_config(config)
    config = copy.deepcopy(config)
    config.num_labels = 1
    if type(config) not in transformers.MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING:
        raise ModelError(
            f"transformers has no reward models of the family `{config.model_type}`; use a model of another family"
        )
    with torch.device("meta"):
        return transformers.AutoModelForSequenceClassification.from_config(config)


# ------------------------------------------------------------------------------------------------ names in files


def as_stored(module: Module, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Those of `weights`, whole layers of the model in `module`, as a file of its family holds them. A tensor may be a
    view of what it was made of."""
    model = _reward_model(module) if isinstance(module, TokenScores) else module.model
    return _stored(model, weights)


def describe(module: Module) -> list[tuple[str, torch.dtype, tuple[int, ...]]]:
    """Name, type and shape of every weight as a file holds it, layer by layer; a shape is that of the whole weight also
    where this process has a part of it.

    Raises:
        ModelError: when a conversion needs more than one layer at a time.
    """
    whole = {n: torch.empty(_shape(w), dtype=w.dtype, device="meta") for n, w in weight_names(module).items()}
    stored = [item for group in by_layer(whole) for item in as_stored(module, group).items()]
    if dict(stored).keys() != as_stored(module, whole).keys():
        raise ModelError(f"the weights of {type(module.model).__name__} cannot be converted layer by layer")
    return [(name, weight.dtype, tuple(weight.shape)) for name, weight in stored]


def _shape(weight: Tensor) -> tuple[int, ...]:
    return tuple(getattr(weight, "ds_shape", weight.shape))


def _stored(model: Any, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    conversions = getattr(model, "_weight_conversions", None)
    if conversions is None:  # not loaded from a file
        conversions = [
            c for c in get_model_conversion_mapping(model, add_legacy=False) if not isinstance(c, PrefixChange)
        ]
    else:  # under ZeRO-3 all that could be are listed, also what no name in the file asked for
        conversions = [c for c in conversions if c.was_used()]
    if not conversions:
        return dict(weights)
    asked: Any = SimpleNamespace(
        _weight_conversions=conversions, config=model.config, get_parameter=model.get_parameter
    )
    return cast("dict[str, Tensor]", revert_weight_conversion(asked, dict(weights)))


def _tied(model: Any) -> set[str]:
    """The names in a file of the weights that are stored once, under another name."""
    named = dict(model.named_parameters(remove_duplicate=False))
    again = {name: named[name] for name in getattr(model, "all_tied_weights_keys", {}) if name in named}
    return set(_stored(model, again))


# ------------------------------------------------------------------------------------------------ directories


def export(
    source: str,
    described: Described,
    weights: Iterable[tuple[str, Tensor]],
    target: Path,
    *,
    shard_bytes: int = 5 * 10**9,
) -> None:
    """Write a Hugging Face directory: `weights` in shards of up to `shard_bytes`, each written as soon as it is
    complete, and all else (config, tokenizer, chat template, generation config) from the model `source`, a directory or
    a hub id."""
    target.mkdir(parents=True, exist_ok=True)
    config = transformers.AutoConfig.from_pretrained(source)
    scores = any(name == SCORE for name, _, _ in described)
    tied = _tied(_empty(config, scores=scores))
    split = split_torch_state_dict_into_shards(
        {name: torch.empty(shape, dtype=dtype, device="meta") for name, dtype, shape in described if name not in tied},
        max_shard_size=shard_bytes,
    )
    shards: dict[str, dict[str, Tensor]] = {filename: {} for filename in split.filename_to_tensors}
    for name, tensor in weights:
        if name in tied:
            continue
        filename = split.tensor_to_filename[name]
        shard = shards[filename]
        shard[name] = tensor.detach().cpu().contiguous().clone()
        if len(shard) == len(split.filename_to_tensors[filename]):
            save_tensors(shard, target / filename)
            shard.clear()
    if split.is_sharded:
        index = {"metadata": split.metadata, "weight_map": split.tensor_to_filename}
        (target / "model.safetensors.index.json").write_text(json.dumps(index, indent=2))
    config.dtype = described[0][1]
    tokenizer: Any = transformers.AutoTokenizer.from_pretrained(source)
    if scores:
        _as_scorer(config, tokenizer, padding_token(source))
    config.save_pretrained(target)
    tokenizer.save_pretrained(target)
    generation = None if scores else _file(source, "generation_config.json")
    if generation is not None:
        shutil.copyfile(generation, target / "generation_config.json")


def _as_scorer(config: Any, tokenizer: Any, pad: int) -> None:
    """Make this the config of a reward model: AutoModelForSequenceClassification finds its class, its one label, and
    the padding token that it needs for more than one text at a time, if there is one."""
    config.architectures = [transformers.MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING[type(config)].__name__]
    config.num_labels = 1
    if pad >= 0:  # else it was a reward model without one, and stays so
        config.pad_token_id = pad
        tokenizer.pad_token = tokenizer.convert_ids_to_tokens(pad)


def load_output_layer(model: ModelConfig) -> OutputLayer:
    """What turns the last hidden states of `model` into logits, read from its files and nothing else of it."""
    assert model.path is not None
    config = transformers.AutoConfig.from_pretrained(model.path)
    reads_apart(model.path, config, auto_class(config))  # refused here, too
    empty = _empty(config, scores=False)
    head = output_layer_of(empty)
    named = dict(empty.named_parameters(remove_duplicate=False))
    weight = {name for name, p in named.items() if p is head.weight}  # more than one name: tied to the embeddings
    bias = {name for name, p in named.items() if p is getattr(head, "bias", None)}
    # Files may have either name: that of the family's files, or that in memory.
    weight, bias = (names | set(_stored(empty, {n: named[n] for n in names})) for names in (weight, bias))
    found = _read(model.path, weight | bias)
    if not weight & found.keys():
        raise ModelError(
            f"{model.path}: no {' or '.join(sorted(weight))} in its *.safetensors files; save the model with "
            "save_pretrained, which writes safetensors"
        )
    dtype = DTYPES[model.dtype]
    weights, biases = ([found[name].to(dtype) for name in sorted(names & found.keys())] for names in (weight, bias))
    transform = logit_transform(model.path, empty)
    return OutputLayer(weight=weights[0], bias=biases[0] if biases else None, transform=transform)


def _read(path: str, names: Collection[str]) -> dict[str, Tensor]:
    """Those of the tensors `names` that the safetensors files of the model at `path` hold; of a hub model nothing but
    the files they are in is fetched."""
    index = _file(path, "model.safetensors.index.json")
    places: dict[str, str] = {}
    if index is not None:
        places = json.loads(index.read_text())["weight_map"]
    files = {places[name] for name in names if name in places} if places else {"model.safetensors"}
    found: dict[str, Tensor] = {}
    for file in filter(None, (_file(path, name) for name in sorted(files))):
        with cast(Any, safe_open)(file, framework="pt") as opened:
            stored = set(opened.keys())
            found |= {name: opened.get_tensor(name) for name in names if name in stored}
    return found


def _file(path: str, name: str) -> Path | None:
    """A file of the model at `path`, a directory or a hub id; None: it has none of this name."""
    found = cached_file(path, name, _raise_exceptions_for_missing_entries=False)
    return None if found is None else Path(found)
