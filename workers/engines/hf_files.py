"""Names of a model's weights in memory and in files, and export to Hugging Face directories.

transformers may hold weights differently than the files of a family do: the experts of a mixture are one parameter in
memory and one tensor each in a file, and names differ. Exported and published weights have the names and shapes of the
files, converted as `save_pretrained` does.
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
from workers.engines.base import ModelError
from workers.engines.divergence import OutputLayer
from workers.engines.heads import TokenScores, output_layer_of
from workers.engines.hf_models import (
    DTYPES,
    Module,
    auto_class,
    logit_transform,
    padding_token,
    reads_apart,
)
from workers.segment import save_tensors
from workers.weights import Average

SCORE = "score.weight"  # score layer of a reward model
Described: TypeAlias = Sequence[tuple[str, torch.dtype, tuple[int, ...]]]


# ------------------------------------------------------------------------------------------------ names in memory


def weight_names(module: Module) -> dict[str, Tensor]:
    """Return every weight by its name in memory: parameters, and the buffers that a checkpoint contains.

    Tied weights (`lm_head.weight`) are included, because an engine that does not receive the tied head keeps its old
    one. With adapters, the weights are those of the base, and the trained score layer of a reward model.

    Raises:
        ModelError: transformers has no reward models of this family.
    """
    if isinstance(module, TokenScores):
        decoder = {_prefix(module) + name: weight for name, weight in _held(module.model).items()}
        return decoder | {SCORE: module.score.weight}
    return _held(module.model)


def _held(model: nn.Module) -> dict[str, Tensor]:
    parameters = adapters.base_names(model.named_parameters(remove_duplicate=False))
    non_persistent = {
        f"{place}.{name}".removeprefix(".")
        for place, m in model.named_modules()
        for name in m._non_persistent_buffers_set
    }
    named = model.named_buffers(remove_duplicate=False)
    buffers = adapters.base_names((name, buffer) for name, buffer in named if name not in non_persistent)
    return {**parameters, **buffers}


def adapters_of(module: Module) -> dict[str, adapters.Adapter]:
    """Return every adapter by the name in memory of its layer."""
    prefix = _prefix(module) if isinstance(module, TokenScores) else ""
    return {prefix + name: adapter for name, adapter in adapters.adapters(module.model).items()}


def trained_whole(module: Module) -> dict[str, Tensor]:
    """Return the fully trained weights of a model with adapters: the score layer of a reward model."""
    return {name: weight for name, weight in weight_names(module).items() if weight.requires_grad}


def by_layer(weights: Mapping[str, Tensor]) -> list[dict[str, Tensor]]:
    """Group weights by decoder layer, so that only one layer at a time need be gathered in memory."""
    groups: dict[str, dict[str, Tensor]] = {}
    for name, weight in weights.items():
        parts = name.split(".")
        layer = next((i for i, part in enumerate(parts) if part.isdigit()), None)
        key = name if layer is None else ".".join(parts[: layer + 1])
        groups.setdefault(key, {})[name] = weight
    return list(groups.values())


def _prefix(module: TokenScores) -> str:
    """Return the prefix of the decoder's names in a reward model: `model.`, or `transformer.` for GPT-2."""
    empty, decoder = _reward_model(module), type(module.model)
    prefix = next((name for name, part in empty.named_modules() if type(part) is decoder), None)
    held = None if prefix is None else {f"{prefix}.{name}" for name in _held(module.model)} | {SCORE}
    if held != set(_held(empty)):
        raise ModelError(
            f"reward models must be a decoder with a `score` layer, as of Qwen2 or Llama, and {type(empty).__name__} "
            "is none; use a model of another family"
        )
    return f"{prefix}."


@lru_cache(maxsize=1)
def _reward_model(module: TokenScores) -> Any:
    """Return the reward model that transformers makes from a decoder, without storage."""
    return _empty(cast(Any, module.model).config, scores=True)


def _empty(config: Any, *, scores: bool) -> Any:
    """Return a model without storage, of the class with which a directory with this config is loaded."""
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
    """Convert complete layers of the model to the names and shapes of its family's files.

    A returned tensor may be a view of its source.
    """
    model = _reward_model(module) if isinstance(module, TokenScores) else module.model
    return _stored(model, weights)


def describe(module: Module) -> list[tuple[str, torch.dtype, tuple[int, ...]]]:
    """Return name, dtype and shape of every weight as in files, layer by layer.

    A shape is that of the full weight, even if this process holds a shard of it.

    Raises:
        ModelError: a conversion needs more than one layer at a time.
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
    if conversions is None:  # the model was not loaded from a file
        conversions = [
            c for c in get_model_conversion_mapping(model, add_legacy=False) if not isinstance(c, PrefixChange)
        ]
    else:  # under ZeRO-3 the list includes conversions that the file did not need
        conversions = [c for c in conversions if c.was_used()]
    if not conversions:
        return dict(weights)
    stub: Any = SimpleNamespace(_weight_conversions=conversions, config=model.config, get_parameter=model.get_parameter)
    return cast("dict[str, Tensor]", revert_weight_conversion(stub, dict(weights)))


def _tied(model: Any) -> set[str]:
    """Return the file names of tied weights, which files contain only under another name."""
    named = dict(model.named_parameters(remove_duplicate=False))
    tied = {name: named[name] for name in getattr(model, "all_tied_weights_keys", {}) if name in named}
    return set(_stored(model, tied))


# ------------------------------------------------------------------------------------------------ directories


def export(
    source: str,
    described: Described,
    weights: Iterable[tuple[str, Tensor]],
    target: Path,
    *,
    average: Average | None = None,
    labels: Sequence[str] = (),
    shard_bytes: int = 5 * 10**9,
) -> None:
    """Write a Hugging Face directory.

    Args:
        source: directory or Hub id of the model from which config, tokenizer, chat template and generation config come.
        described: name, dtype and shape of each weight, see `describe`.
        weights: the weights. A shard is written as soon as it is complete.
        average: average with the weights of an earlier export that is written in place of `weights`; None: none.
        labels: names of the scores of a reward model; empty: it has one.
        shard_bytes: maximum size of a shard.
    """
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
        tensor = tensor.detach().cpu()
        shard[name] = (tensor if average is None else _averaged(name, tensor, average)).contiguous().clone()
        if len(shard) == len(split.filename_to_tensors[filename]):
            save_tensors(shard, target / filename)
            shard.clear()
    if split.is_sharded:
        index = {"metadata": split.metadata, "weight_map": split.tensor_to_filename}
        (target / "model.safetensors.index.json").write_text(json.dumps(index, indent=2))
    config.dtype = described[0][1]
    tokenizer: Any = transformers.AutoTokenizer.from_pretrained(source)
    if scores:
        _as_scorer(config, tokenizer, padding_token(source), labels)
    config.save_pretrained(target)
    tokenizer.save_pretrained(target)
    generation = None if scores else _file(source, "generation_config.json")
    if generation is not None:
        shutil.copyfile(generation, target / "generation_config.json")


def _averaged(name: str, tensor: Tensor, average: Average) -> Tensor:
    """Return the average of a weight and its value in an earlier export, computed in float32.

    Raises:
        ModelError: the earlier export has no such weight.
    """
    earlier = _read(average.directory, {name}).get(name)
    if earlier is None or earlier.shape != tensor.shape:
        raise ModelError(f"{average.directory} has no weight {name} of shape {list(tensor.shape)}; restore it")
    mixed = (1 - average.alpha) * earlier.float() + average.alpha * tensor.float()
    return mixed.to(tensor.dtype) if tensor.is_floating_point() else tensor


def _as_scorer(config: Any, tokenizer: Any, pad: int, labels: Sequence[str]) -> None:
    """Turn `config` into that of a reward model: its class, its labels and its padding token.

    AutoModelForSequenceClassification needs a padding token to score several texts at once.
    """
    config.architectures = [transformers.MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING[type(config)].__name__]
    config.num_labels = len(labels) or 1
    if labels:
        config.id2label = dict(enumerate(labels))
        config.label2id = {name: i for i, name in enumerate(labels)}
    if pad >= 0:  # -1: a reward model without one
        config.pad_token_id = pad
        tokenizer.pad_token = tokenizer.convert_ids_to_tokens(pad)


def load_output_layer(model: ModelConfig) -> OutputLayer:
    """Load the output layer of `model`, and no other weights, from its files.

    Raises:
        ModelError: the model is not supported, or its files do not contain the layer.
    """
    assert model.path is not None
    config = transformers.AutoConfig.from_pretrained(model.path)
    reads_apart(model.path, config, auto_class(config))  # raises ModelError
    empty = _empty(config, scores=False)
    head = output_layer_of(empty)
    named = dict(empty.named_parameters(remove_duplicate=False))
    weight = {name for name, p in named.items() if p is head.weight}  # more than one name: tied to the embeddings
    bias = {name for name, p in named.items() if p is getattr(head, "bias", None)}
    # A file may use the name of the family's files or the name in memory.
    weight, bias = (names | set(_stored(empty, {n: named[n] for n in names})) for names in (weight, bias))
    tensors = _read(model.path, weight | bias)
    if not weight & tensors.keys():
        raise ModelError(
            f"{model.path}: no {' or '.join(sorted(weight))} in its *.safetensors files; save the model with "
            "save_pretrained, which writes safetensors"
        )
    dtype = DTYPES[model.dtype]
    weights, biases = ([tensors[name].to(dtype) for name in sorted(names & tensors.keys())] for names in (weight, bias))
    transform = logit_transform(model.path, empty)
    return OutputLayer(weight=weights[0], bias=biases[0] if biases else None, transform=transform)


def _read(path: str, names: Collection[str]) -> dict[str, Tensor]:
    """Read the tensors in `names` that the safetensors files of a model contain. Only these files are downloaded."""
    index = _file(path, "model.safetensors.index.json")
    places: dict[str, str] = {}
    if index is not None:
        places = json.loads(index.read_text())["weight_map"]
    files = {places[name] for name in names if name in places} if places else {"model.safetensors"}
    tensors: dict[str, Tensor] = {}
    for file in filter(None, (_file(path, name) for name in sorted(files))):
        with cast(Any, safe_open)(file, framework="pt") as opened:
            stored = set(opened.keys())
            tensors |= {name: opened.get_tensor(name) for name in names if name in stored}
    return tensors


def _file(path: str, name: str) -> Path | None:
    """Return a file of the model at `path`, a directory or a Hub id; None: there is no such file."""
    file = cached_file(path, name, _raise_exceptions_for_missing_entries=False)
    return None if file is None else Path(file)
