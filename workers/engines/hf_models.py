"""Loading of transformers models, and learning-rate schedules. hf_text.py has the text, hf_files.py the files."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeAlias, cast

import torch
import transformers
from torch import nn
from transformers import dynamic_module_utils
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.utils.logging import disable_progress_bar

from workers.config import Head, LoraConfig
from workers.engines import hf_logits, hf_packing
from workers.engines import lora as adapters
from workers.engines.attention import AttentionError
from workers.engines.base import ModelError
from workers.engines.heads import TokenLogprobs, TokenScores, TokenValues, decoder_of, output_layer_of
from workers.engines.layout import Packing
from workers.engines.logits import LogitTransform
from workers.positions import positions_of

dynamic_module_utils.TIME_OUT_REMOTE_CODE = 0  # custom code of a model is never run; no prompt asks whether to
disable_progress_bar()  # a run shows its own progress

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
PARTITIONED_TOO_EARLY = (
    *(AssertionError, AttributeError, IndexError, KeyError, RuntimeError, TypeError, ValueError),
    ZeroDivisionError,
)
"""Exceptions of constructors that compute with weights which ZeRO-3 has already partitioned."""
Module: TypeAlias = TokenLogprobs | TokenValues | TokenScores


# ------------------------------------------------------------------------------------------------ models


def load(
    path: str,
    dtype: str,
    *,
    head: Head,
    chunk: int,
    seed: int,
    deepspeed: Mapping[str, Any] | None = None,
    lora: LoraConfig | None = None,
    labels: Sequence[str] = (),
) -> Module:
    """Load the model at `path` with the given head; with `labels`, a score for each of them."""
    match head:
        case "logprobs":
            return load_policy(path, dtype, chunk=chunk, deepspeed=deepspeed, lora=lora)
        case "values":
            return load_critic(path, dtype, deepspeed=deepspeed, lora=lora)
        case "scores":
            return load_scorer(path, dtype, seed=seed, deepspeed=deepspeed, lora=lora, labels=labels)


def load_policy(
    path: str, dtype: str, *, chunk: int, deepspeed: Mapping[str, Any] | None = None, lora: LoraConfig | None = None
) -> TokenLogprobs:
    """Load the causal language model at `path` with a head of token log-probabilities.

    With `deepspeed` (a ZeRO-3 config) the weights are partitioned while they are loaded, so that no rank ever holds the
    whole model.
    """
    model, packing = _load(path, dtype, deepspeed, lora)
    return TokenLogprobs(model, chunk, logit_transform(path, model), packing)


def load_critic(
    path: str, dtype: str, *, deepspeed: Mapping[str, Any] | None = None, lora: LoraConfig | None = None
) -> TokenValues:
    """Load the decoder of the model at `path` with a value head, which starts at zero.

    The score layer of a reward model becomes its value head: the score of a whole text is a first estimate of the value
    of its parts. The head is fully trained, even with adapters.
    """
    if is_scorer(path):
        scorer, packing = _load_scorer(path, dtype, deepspeed, lora)
        return TokenValues(
            decoder_of(scorer), scorer.score.in_features, DTYPES[dtype], head=scorer.score, packing=packing
        )
    model, packing = _load(path, dtype, deepspeed, lora)
    return TokenValues(decoder_of(model), _hidden_size(model), DTYPES[dtype], packing=packing)


def load_scorer(
    path: str,
    dtype: str,
    *,
    seed: int = 0,
    deepspeed: Mapping[str, Any] | None = None,
    lora: LoraConfig | None = None,
    labels: Sequence[str] = (),
) -> TokenScores:
    """Load the reward model at `path`, or the decoder of a causal language model with a new score layer.

    The new layer is initialised from `seed` as transformers does: normal, with the model's `initializer_range`. The
    layer is fully trained, even with adapters. With `labels` it has a score for each of them.
    """
    if is_scorer(path):
        model, packing = _load_scorer(path, dtype, deepspeed, lora, labels)
        return TokenScores(decoder_of(model), model.score, packing)
    model, packing = _load(path, dtype, deepspeed, lora)
    score = nn.Linear(_hidden_size(model), len(labels) or 1, bias=False, dtype=DTYPES[dtype])
    spread = float(getattr(model.config, "initializer_range", 0.02))
    # In float32 from a separate generator: equal on all ranks, whatever state their generators have.
    initial = torch.randn(score.weight.shape, generator=torch.Generator().manual_seed(seed)) * spread
    score.weight.data.copy_(initial)
    return TokenScores(decoder_of(model), score, packing)


def load_score(path: str, dtype: str, label: str | None) -> TokenScores:
    """Load the reward model at `path` for the score of `label` alone; None: the model has one label.

    Raises:
        ModelError: the model has no such label, or several and None is given.
    """
    if label is None:
        return load_scorer(path, dtype)
    names = labels_of(path)
    if label not in names:
        raise ModelError(f"{path} has no label {label}; give one of {', '.join(names)}")
    scorer = load_scorer(path, dtype, labels=names)
    row = names.index(label)
    scorer.score.weight = nn.Parameter(scorer.score.weight[row : row + 1].detach().clone())
    scorer.score.out_features = 1
    return scorer


def labels_of(path: str) -> tuple[str, ...]:
    """Return the labels of the reward model at `path`."""
    names: dict[int, str] = transformers.AutoConfig.from_pretrained(path).id2label
    return tuple(names[i] for i in range(len(names)))


def is_scorer(path: str) -> bool:
    """Return True if the model at `path` is a reward model, that is, one for sequence classification."""
    architectures = getattr(transformers.AutoConfig.from_pretrained(path), "architectures", None) or ()
    return any(name.endswith("ForSequenceClassification") for name in architectures)


def padding_token(path: str) -> int:
    """Return the token that a reward model skips to find the last token of a text; -1: none.

    The config of a reward model names it. A reward model made from a language model gets the tokenizer's padding token
    or, if that is missing or not in the model's vocabulary, the end of sequence, as in TRL. A text is then scored at
    the token before its end.

    Raises:
        ModelError: the tokenizer has neither.
    """
    config = transformers.AutoConfig.from_pretrained(path).get_text_config()
    if is_scorer(path):
        given = getattr(config, "pad_token_id", None)
        return -1 if given is None else int(given)
    tokenizer: Any = transformers.AutoTokenizer.from_pretrained(path)
    vocabulary = range(config.vocab_size)
    chosen = next((t for t in (tokenizer.pad_token_id, tokenizer.eos_token_id) if t in vocabulary), None)
    if chosen is None:
        raise ModelError(f"{path}: the tokenizer has neither a padding token nor an end of sequence; set one of them")
    return int(chosen)


def _load_scorer(
    path: str, dtype: str, deepspeed: Mapping[str, Any] | None, lora: LoraConfig | None, labels: Sequence[str] = ()
) -> tuple[Any, Packing]:
    found = labels_of(path)
    if labels and found != tuple(labels):
        raise ModelError(f"{path} has the labels {', '.join(found)}, not {', '.join(labels)}; name those in order")
    if not labels and len(found) != 1:
        raise ModelError(
            f"{path}: a reward model must have one label, this one has {len(found)} labels; use another one, or name "
            "one of them as the `label` of the reward"
        )
    model, packing, missing = _from_pretrained(transformers.AutoModelForSequenceClassification, path, dtype, deepspeed)
    if not isinstance(getattr(model, "score", None), nn.Linear):
        raise ModelError(f"{path}: no `score` layer; use a reward model of a decoder family such as Qwen2 or Llama")
    _require_weights(path, model, missing, [decoder_of(model), model.score])
    if lora is not None:
        adapters.attach(decoder_of(model), lora)
    return model, packing


def _load(
    path: str, dtype: str, deepspeed: Mapping[str, Any] | None, lora: LoraConfig | None = None
) -> tuple[Any, Packing]:
    auto = auto_class(transformers.AutoConfig.from_pretrained(path))
    model, packing, missing = _from_pretrained(auto, path, dtype, deepspeed)
    if output_layer_of(model) is None:
        kind = f"models of type {model.config.model_type}"
        raise ModelError(f"{path}: {kind} are not supported: they have no output layer for token logits")
    _require_weights(path, model, missing, _text(model))
    _freeze_all_but_text(model)
    if lora is not None:
        adapters.attach(model, lora)
    return model, packing


def auto_class(config: Any) -> Any:
    """Return the auto class that loads a language model with this config; of a vision-language model, text is used.

    Raises:
        ModelError: transformers has no causal language model of this type.
    """
    if type(config) in transformers.MODEL_FOR_CAUSAL_LM_MAPPING:
        return transformers.AutoModelForCausalLM
    if type(config) in transformers.MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING:
        return transformers.AutoModelForImageTextToText
    raise ModelError(f"transformers has no causal language model of type {config.model_type}; use a decoder-only model")


def _from_pretrained(
    auto: Any, path: str, dtype: str, deepspeed: Mapping[str, Any] | None
) -> tuple[Any, Packing, set[str]]:
    """Load a model. Return it, how rows are given to it, and the names of the weights that its files lack."""
    config = transformers.AutoConfig.from_pretrained(path)
    if getattr(config, "quantization_config", None):
        raise ModelError(f"{path}: its weights are quantised; use the model in float32 or bfloat16")
    _disable_dropout(config)
    reason = reads_apart(path, config, auto)
    attention = {} if reason else {"attn_implementation": hf_packing.NAME}
    hf_packing.register()
    sharding = _sharded_loading(deepspeed) if deepspeed else None  # in force while it is alive
    try:
        model, info = auto.from_pretrained(
            path, config=config, dtype=DTYPES[dtype], output_loading_info=True, **attention
        )
    except PARTITIONED_TOO_EARLY as error:
        if sharding is None:
            raise
        raise ModelError(
            f"{path}: models of type {config.model_type} cannot be partitioned ({type(error).__name__}: {error}); "
            "set zero_stage to 2"
        ) from error
    del sharding
    limit = hf_packing.encode_by_own_length(model)
    return model, Packing(apart=reason is not None, max_shared_length=limit), set(info["missing_keys"])


def reads_apart(path: str, config: Any, auto: Any) -> str | None:
    """Return the reason why the model at `path` must read each completion in a row of its own; None: rows are packed.

    Raises:
        ModelError: the model is not supported either way.
    """
    try:
        return hf_packing.reads_apart(auto._model_mapping[type(config)], config)
    except AttentionError as error:
        raise ModelError(f"{path}: models of type {config.model_type} are not supported: {error}") from error


def _disable_dropout(config: Any) -> None:
    """Set dropout and layer drop to 0 in a model's config, because checkpointed layers run in training mode.

    The exported config is not affected: it is read from the original file.
    """
    for name, value in list(vars(config).items()):
        if isinstance(value, transformers.PreTrainedConfig):
            _disable_dropout(value)
        elif isinstance(value, float) and "drop" in name:
            setattr(config, name, 0.0)


def set_loss_mode(module: Module) -> None:
    """Put a model in the mode in which its loss is computed: evaluation mode, with two exceptions.

    Evaluation mode has no randomness, so that probability ratios compare the same function before and after. The
    exceptions are the dropout of adapters, and checkpointed layers, which transformers checkpoints in training mode
    only.
    """
    module.eval()
    for part in module.modules():
        if isinstance(part, GradientCheckpointingLayer):
            part.training = bool(part.gradient_checkpointing)
        elif (dropout := getattr(part, "lora_dropout", None)) is not None:
            dropout.train()


def _freeze_all_but_text(model: Any) -> None:
    """Freeze the parts of a vision-language model that text does not pass through."""
    trained = {id(p) for module in _text(model) for p in module.parameters()}
    for p in model.parameters():
        if id(p) not in trained:
            p.requires_grad_(False)


def _text(model: Any) -> list[Any]:
    """Return the modules that text passes through on its way to logits."""
    return [decoder_of(model), output_layer_of(model), model.get_input_embeddings()]


def _require_weights(path: str, model: Any, missing: set[str], layers: list[Any]) -> None:
    """Raise ModelError if a model's files lack weights of `layers`, which transformers then initialises at random."""
    used = {id(t) for layer in layers for t in (*layer.parameters(), *layer.buffers())}
    tensors = {**dict(model.named_buffers()), **dict(model.named_parameters(remove_duplicate=False))}
    if lacking := sorted(name for name in missing if id(tensors.get(name)) in used):
        raise ModelError(
            f"{path}: its files lack weights of {type(model).__name__} ({len(lacking)}, as {lacking[0]}), the class "
            f"that transformers loads for type {model.config.model_type}; they would be random"
        )


def logit_transform(path: str, model: Any) -> LogitTransform:
    """Return the logit transform of the model at `path`. Raises ModelError if it has no known form."""
    try:
        return hf_logits.logit_transform(model)
    except hf_logits.Unrecognised as error:
        raise ModelError(f"{path}: models of type {model.config.model_type} are not supported: {error}") from error


def _hidden_size(model: Any) -> int:
    return int(model.config.get_text_config(decoder=True).hidden_size)


def _sharded_loading(deepspeed: Mapping[str, Any]) -> Any:
    # Imported here because it imports all of DeepSpeed.
    from transformers.integrations.deepspeed import HfDeepSpeedConfig

    return HfDeepSpeedConfig(dict(deepspeed))


def enable_checkpointing(module: Module) -> None:
    """Recompute activations in the backward pass instead of keeping them."""
    cast(Any, module.model).gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})


def layer_classes(module: Module) -> list[str]:
    """Return the names of the classes of a model's decoder layers."""
    return sorted(cast(Any, module.model)._no_split_modules or ())


def schedule(name: str, *, warmup: float, total: int) -> Callable[[int], float]:
    """Return a function from the index of an optimiser update, of `total`, to its learning-rate factor.

    `warmup` is a number of updates or, if below 1, a share of `total`.
    """
    warmup_updates = round(warmup * total) if warmup < 1 else round(warmup)
    kind = "constant_with_warmup" if name == "constant" else name
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1.0)
    # transformers' warm-up starts at 0, which would waste the first update: its schedule is used from index 1 on.
    shift = 1 if warmup_updates else 0
    lambdas = transformers.get_scheduler(
        kind, optimizer, num_warmup_steps=warmup_updates, num_training_steps=total + shift
    ).lr_lambdas
    return lambda update: float(lambdas[0](update + shift))


def max_positions(path: str) -> int | None:
    """Return the length of the longest sequence of the model at `path`; None: its config has no limit."""
    return positions_of(transformers.AutoConfig.from_pretrained(path).to_dict())
