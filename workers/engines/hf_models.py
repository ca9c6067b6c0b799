"""Models and schedules: transformers, but for the text (hf_text.py) and for names and directories (hf_files.py).

What of transformers is slow to import (models, tokenizers) is asked for by attribute, where it is used: a driver wants
the names of the workers' methods alone, and starts two seconds earlier.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, TypeAlias, cast

import torch
import transformers
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import nn
from transformers import PreTrainedTokenizerFast, dynamic_module_utils
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.utils.logging import disable_progress_bar

from workers.config import LoraConfig
from workers.engines import hf_logits, hf_packing
from workers.engines import lora as adapters
from workers.engines.attention import AttentionError
from workers.engines.heads import TokenLogprobs, TokenScores, TokenValues, decoder_of, output_layer_of
from workers.engines.layout import Packing
from workers.engines.logits import LogitTransform
from workers.needs import Head
from workers.positions import positions_of

dynamic_module_utils.TIME_OUT_REMOTE_CODE = 0  # code that a model brings along is never run, and nobody is asked to
disable_progress_bar()  # of loading and writing files: the run has its own

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
PARTITIONED_AT_WORK = (
    *(AssertionError, AttributeError, IndexError, KeyError, RuntimeError, TypeError, ValueError),
    ZeroDivisionError,
)
"""What constructors raise that compute with weights which ZeRO-3 has taken apart already."""
Module: TypeAlias = TokenLogprobs | TokenValues | TokenScores


class ModelError(Exception):
    """A model or tokenizer cannot be used as asked; the message says which and what to do."""


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
) -> Module:
    """The model at `path` as a module that answers what `head` says."""
    match head:
        case "logprobs":
            return load_policy(path, dtype, chunk=chunk, deepspeed=deepspeed, lora=lora)
        case "values":
            return load_critic(path, dtype, deepspeed=deepspeed, lora=lora)
        case "scores":
            return load_scorer(path, dtype, seed=seed, deepspeed=deepspeed, lora=lora)


def load_policy(
    path: str, dtype: str, *, chunk: int, deepspeed: Mapping[str, Any] | None = None, lora: LoraConfig | None = None
) -> TokenLogprobs:
    """The causal language model at `path` as a module that answers log-probabilities.

    With `deepspeed` (a ZeRO-3 config) the weights are partitioned while they are loaded, so that no rank ever holds the
    whole model.
    """
    model, packing = _load(path, dtype, deepspeed, lora)
    return TokenLogprobs(model, chunk, logit_transform(path, model), packing)


def load_critic(
    path: str, dtype: str, *, deepspeed: Mapping[str, Any] | None = None, lora: LoraConfig | None = None
) -> TokenValues:
    """The decoder of the model at `path` with a value head that starts at zero. Of a reward model the score layer is
    the value head: what it says of a whole text is the first guess of what a part of it is worth. The head is trained
    whole, also with adapters."""
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
) -> TokenScores:
    """The reward model at `path`; of a causal language model the decoder, with a score layer drawn by `seed` as
    transformers would draw it: normal, of the model's `initializer_range`. The layer is trained whole, also with
    adapters."""
    if is_scorer(path):
        model, packing = _load_scorer(path, dtype, deepspeed, lora)
        return TokenScores(decoder_of(model), model.score, packing)
    model, packing = _load(path, dtype, deepspeed, lora)
    score = nn.Linear(_hidden_size(model), 1, bias=False, dtype=DTYPES[dtype])
    spread = float(getattr(model.config, "initializer_range", 0.02))
    # Drawn in float32 by a generator of its own: the same on all ranks, whatever they have drawn before.
    drawn = torch.randn(score.weight.shape, generator=torch.Generator().manual_seed(seed)) * spread
    score.weight.data.copy_(drawn)
    return TokenScores(decoder_of(model), score, packing)


def is_scorer(path: str) -> bool:
    """Whether the model at `path` is one for sequence classification, which reward models are."""
    named = getattr(transformers.AutoConfig.from_pretrained(path), "architectures", None) or ()
    return any(name.endswith("ForSequenceClassification") for name in named)


def padding_token(path: str) -> int:
    """The token that a reward model looks past to find a text's last one; -1: none.

    A reward model's config names it. A reward model that is made of a language model gets the tokenizer's padding
    token, or where it has none (that the model knows) the end of sequence, as TRL has it: a text is then scored at the
    token before its end.
    """
    config = transformers.AutoConfig.from_pretrained(path).get_text_config()
    if is_scorer(path):
        given = getattr(config, "pad_token_id", None)
        return -1 if given is None else int(given)
    tokenizer: Any = transformers.AutoTokenizer.from_pretrained(path)
    known = range(config.vocab_size)
    chosen = next((t for t in (tokenizer.pad_token_id, tokenizer.eos_token_id) if t in known), None)
    if chosen is None:
        raise ModelError(f"{path}: the tokenizer has neither a padding token nor an end of sequence; set one of them")
    return int(chosen)


def _load_scorer(
    path: str, dtype: str, deepspeed: Mapping[str, Any] | None, lora: LoraConfig | None
) -> tuple[Any, Packing]:
    labels = transformers.AutoConfig.from_pretrained(path).num_labels
    if labels != 1:
        raise ModelError(f"{path}: a reward model answers one number, this one has {labels} labels; use one with one")
    model, packing, missing = _from_pretrained(transformers.AutoModelForSequenceClassification, path, dtype, deepspeed)
    if not isinstance(getattr(model, "score", None), nn.Linear):
        raise ModelError(f"{path}: a reward model is a decoder with a `score` layer here, as of Qwen2 or Llama")
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
        raise ModelError(f"{path}: {kind} are not supported: they have no layer that answers logits of tokens")
    _require_weights(path, model, missing, _text(model))
    _freeze_all_but_text(model)
    if lora is not None:
        adapters.attach(model, lora)
    return model, packing


def auto_class(config: Any) -> Any:
    """What loads a language model of this config: a vision-language model is used for its text.

    Raises:
        ModelError: there is no causal language model of its type.
    """
    if type(config) in transformers.MODEL_FOR_CAUSAL_LM_MAPPING:
        return transformers.AutoModelForCausalLM
    if type(config) in transformers.MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING:
        return transformers.AutoModelForImageTextToText
    raise ModelError(f"transformers has no causal language model of type {config.model_type}; give a decoder-only one")


def _from_pretrained(
    auto: Any, path: str, dtype: str, deepspeed: Mapping[str, Any] | None
) -> tuple[Any, Packing, set[str]]:
    """The model at `path`, how it may be given rows, and the names of the weights that its files lack."""
    config = transformers.AutoConfig.from_pretrained(path)
    if getattr(config, "quantization_config", None):
        raise ModelError(f"{path}: its weights are quantised; give the model in float32 or bfloat16")
    _without_dropout(config)
    reason = reads_apart(path, config, auto)
    given = {} if reason else {"attn_implementation": hf_packing.NAME}
    hf_packing.register()
    sharding = _sharded_loading(deepspeed) if deepspeed else None  # in force while it is alive
    try:
        model, told = auto.from_pretrained(path, config=config, dtype=DTYPES[dtype], output_loading_info=True, **given)
    except PARTITIONED_AT_WORK as error:
        if sharding is None:
            raise
        raise ModelError(
            f"{path}: models of type {config.model_type} cannot be loaded in parts ({type(error).__name__}: {error}); "
            "set zero_stage to 2"
        ) from error
    del sharding
    limit = hf_packing.encode_by_own_length(model)
    return model, Packing(apart=reason is not None, max_shared_length=limit), set(told["missing_keys"])


def reads_apart(path: str, config: Any, auto: Any) -> str | None:
    """Why the model at `path` must be given its rows apart; None: they may be packed. Raises ModelError where it is
    right neither way."""
    try:
        return hf_packing.reads_apart(auto._model_mapping[type(config)], config)
    except AttentionError as error:
        raise ModelError(f"{path}: models of type {config.model_type} are not supported: {error}") from error


def _without_dropout(config: Any) -> None:
    """Switch off dropout and layer drop in a model's config, in place: checkpointed layers are in training mode. The
    config that is exported is read anew."""
    for name, value in list(vars(config).items()):
        if isinstance(value, transformers.PreTrainedConfig):
            _without_dropout(value)
        elif isinstance(value, float) and "drop" in name:
            setattr(config, name, 0.0)


def learning(module: Module) -> None:
    """Put a model in the mode in which its loss is computed: nothing of it is random, so that a ratio compares the same
    function before and after. What a user asked for remains: adapters' own dropout, and checkpointed layers, which
    transformers checkpoints in training mode alone."""
    module.eval()
    for part in module.modules():
        if isinstance(part, GradientCheckpointingLayer):
            part.training = bool(part.gradient_checkpointing)
        elif (dropout := getattr(part, "lora_dropout", None)) is not None:
            dropout.train()


def _freeze_all_but_text(model: Any) -> None:
    """Of a vision-language model train what text passes through; the rest stays, and is exported, as it was."""
    trained = {id(p) for module in _text(model) for p in module.parameters()}
    for p in model.parameters():
        if id(p) not in trained:
            p.requires_grad_(False)


def _text(model: Any) -> list[Any]:
    """What text passes through on its way to logits."""
    return [decoder_of(model), output_layer_of(model), model.get_input_embeddings()]


def _require_weights(path: str, model: Any, missing: set[str], layers: list[Any]) -> None:
    """Refuse a model whose files lack weights of `layers`, which transformers has drawn at random.

    Raises:
        ModelError: the message names the first of them.
    """
    used = {id(t) for layer in layers for t in (*layer.parameters(), *layer.buffers())}
    named = {**dict(model.named_buffers()), **dict(model.named_parameters(remove_duplicate=False))}
    if lost := sorted(name for name in missing if id(named.get(name)) in used):
        raise ModelError(
            f"{path}: its files lack weights of {type(model).__name__} ({len(lost)}, as {lost[0]}), which is what "
            f"transformers loads of type {model.config.model_type}; they would be random"
        )


def logit_transform(path: str, model: Any) -> LogitTransform:
    """What the model at `path` does to its logits. Raises ModelError where that is of no known form."""
    try:
        return hf_logits.logit_transform(model)
    except hf_logits.Unrecognised as error:
        raise ModelError(f"{path}: models of type {model.config.model_type} are not supported: {error}") from error


def _hidden_size(model: Any) -> int:
    return int(model.config.get_text_config(decoder=True).hidden_size)


def _sharded_loading(deepspeed: Mapping[str, Any]) -> Any:
    # Imported here: it imports all of DeepSpeed, which only learners need.
    from transformers.integrations.deepspeed import HfDeepSpeedConfig

    return HfDeepSpeedConfig(dict(deepspeed))


def enable_checkpointing(module: Module) -> None:
    """Recompute activations in the backward pass instead of keeping them."""
    cast(Any, module.model).gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})


def layer_classes(module: Module) -> list[str]:
    """Names of the classes that a model's decoder layers are of."""
    return sorted(cast(Any, module.model)._no_split_modules or ())


def schedule(name: str, *, warmup: float, total: int) -> Callable[[int], float]:
    """Factor of the learning rate at each optimiser update of `total`; `warmup` is a count, or a share when below 1."""
    warmup_updates = round(warmup * total) if warmup < 1 else round(warmup)
    kind = "constant_with_warmup" if name == "constant" else name
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1.0)
    # transformers' warm-up starts at exactly 0, which would waste the first update: ours is one later throughout.
    shift = 1 if warmup_updates else 0
    lambdas = transformers.get_scheduler(
        kind, optimizer, num_warmup_steps=warmup_updates, num_training_steps=total + shift
    ).lr_lambdas
    return lambda update: float(lambdas[0](update + shift))


def max_positions(path: str) -> int | None:
    """The longest sequence the model was built for; None when its config does not say."""
    return positions_of(transformers.AutoConfig.from_pretrained(path).to_dict())


def create_model(directory: Path, config: Mapping[str, Any], tokenizer: PreTrainedTokenizerFast, seed: int) -> None:
    """A randomly initialised model with its tokenizer as a Hugging Face directory: for laptops and tests.

    `config` is a config.json without vocabulary and special tokens, as `{"model_type": "qwen2", "hidden_size": 192}`.
    """
    torch.manual_seed(seed)
    full = transformers.AutoConfig.for_model(
        **config,
        vocab_size=len(tokenizer),
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    model: Any = transformers.AutoModelForCausalLM
    model.from_config(full, dtype=torch.float32).save_pretrained(directory)
    tokenizer.save_pretrained(directory)


def character_tokenizer(alphabet: str) -> PreTrainedTokenizerFast:
    """One token per character, plus <pad>, <eos> and <unk>."""
    vocabulary = {token: i for i, token in enumerate(["<pad>", "<eos>", "<unk>", *alphabet])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    tokenizer.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        eos_token="<eos>",
        unk_token="<unk>",
        clean_up_tokenization_spaces=False,
    )


def bpe_tokenizer(corpus: Iterable[str], vocab_size: int, chat_template: str | None = None) -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer trained on `corpus`, with <s>, </s>, <pad> and chat markers."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    special = ["<s>", "</s>", "<pad>", "<|user|>", "<|assistant|>"]
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=special,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(corpus, trainer)
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<s>",
        eos_token="</s>",
        pad_token="<pad>",
        clean_up_tokenization_spaces=False,
    )
    fast.chat_template = chat_template
    return fast
