"""Tiny, randomly initialised models of every decoder family in transformers.

Each model exercises what is special in its family. `values` holds the small values of the configs.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
import transformers
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from torch import nn
from transformers import PreTrainedConfig, PreTrainedTokenizerFast
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from tests.families.values import FORCED, IMAGE_TEXT, OWN, PARTS, SMALL, UNBUILDABLE

LARGEST = 3_000_000  # parameters
SPREAD = 0.15  # standard deviation of a matrix; below it, the attention of a tiny model is nearly uniform
TOKENS = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
CHARACTERS = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789 .,:;!?+-*/=()[]{}<>'\"#$%&@^_~|"


class Unbuildable(Exception):
    """Family for which transformers builds no small language model that runs on tokens alone."""


@dataclass(frozen=True, kw_only=True)
class Tiny:
    """Small config of a family, and the auto class that builds it."""

    model_type: str
    config: PreTrainedConfig
    auto: Literal["causal", "image-text"]

    def build(self) -> Any:
        """Return the model as transformers initialises it."""
        auto: Any = (
            transformers.AutoModelForCausalLM if self.auto == "causal" else transformers.AutoModelForImageTextToText
        )
        return auto.from_config(self.config, dtype=torch.float32)


def families() -> list[str]:
    """Return the names of all families, including those that cannot be built."""
    return sorted({*MODEL_FOR_CAUSAL_LM_MAPPING_NAMES, *IMAGE_TEXT})


def tiny(model_type: str) -> Tiny:
    """Return the small config of a family and its auto class; raise Unbuildable if the family cannot be built."""
    if model_type in UNBUILDABLE:
        raise Unbuildable(f"{model_type}: {UNBUILDABLE[model_type]}")
    auto: Literal["causal", "image-text"] = "image-text" if model_type in IMAGE_TEXT else "causal"
    return Tiny(model_type=model_type, config=shrunk(CONFIG_MAPPING[model_type]), auto=auto)


def tiny_config(model_type: str) -> PreTrainedConfig:
    """Return the small config of a family; raise Unbuildable if transformers cannot build or run one."""
    return tiny(model_type).config


def tiny_model(model_type: str, seed: int = 0) -> Any:
    """Return a tiny float32 model of a family in evaluation mode, initialised with `seed`."""
    family = tiny(model_type)
    with torch.device("meta"):  # a default that was not made small could fill the memory
        size = sum(p.numel() for p in family.build().parameters())
    if size > LARGEST:
        raise AssertionError(f"{model_type}: {size:,} parameters; values.py makes too little of it small")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = family.build()
    randomise_constants(model, seed)
    return model.eval()


def write_tiny(directory: Path, model_type: str, seed: int = 0) -> None:
    """Write a tiny model of a family with a tokenizer, as a Hugging Face directory."""
    tiny_model(model_type, seed).save_pretrained(directory)
    tokenizer().save_pretrained(directory)


def tokenizer() -> PreTrainedTokenizerFast:
    """Return the tokenizer of all tiny models: a token for each of 92 characters, and four special ones."""
    special = ["<pad>", "<s>", "</s>", "<unk>"]
    vocabulary = {token: i for i, token in enumerate([*special, *CHARACTERS])}
    drawn = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    drawn.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    drawn.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(
        tokenizer_object=drawn,
        pad_token="<pad>",
        bos_token="<s>",
        eos_token="</s>",
        unk_token="<unk>",
        clean_up_tokenization_spaces=False,
    )


# ------------------------------------------------------------------------------------------------ small configs


def shrunk(family: type[PreTrainedConfig]) -> PreTrainedConfig:
    """Return a config of `family` with small values, also in its sub-configs."""
    own = OWN.get(family.model_type, {})
    parts = {name: shrunk(CONFIG_MAPPING[part]) for name, part in PARTS.get(family.model_type, {}).items()}
    if family.has_no_defaults_at_init:
        return family(**own, **{name: part.to_dict() for name, part in parts.items()})
    if family.sub_configs:
        default = family()
        defaults = {name: getattr(default, name, None) for name in family.sub_configs if name not in {*own, *parts}}
        parts |= {name: shrunk(type(part)) for name, part in defaults.items() if isinstance(part, PreTrainedConfig)}
    given = {**small_values(family), **parts, **own}
    return family(**{k: v for k, v in given.items() if v is not None})


def small_values(family: type[PreTrainedConfig]) -> dict[str, Any]:
    """Return the small values of the fields in the family's default config."""
    fields = family().to_dict()
    defaults = {k: fields[k] for k in SMALL if k in fields and not isinstance(fields[k], list | tuple | dict)}
    chosen = {k: SMALL[k] for k, v in defaults.items() if v is not None or k in FORCED}
    if "vocab_size" in fields:
        chosen.update(TOKENS)
    layers = chosen.get("num_hidden_layers", 4)
    for name in ("layer_types", "layers_block_type", "indexer_types"):
        if len(kinds := list(dict.fromkeys(fields.get(name) or ()))) > 1:
            chosen[name] = [kinds[i % len(kinds)] for i in range(layers)]
    if len(kinds := list(dict.fromkeys(fields.get("mlp_layer_types") or ()))) > 1:  # dense layers come first
        chosen["mlp_layer_types"] = [kinds[i * len(kinds) // layers] for i in range(layers)]
    return chosen


# ------------------------------------------------------------------------------------------------ random weights


@torch.no_grad()
def randomise_constants(model: nn.Module, seed: int) -> None:
    """Add noise to weights that transformers initialises to a constant, and scale up those it initialises near zero.

    A zero bias, a norm of ones or a zero sink could be lost without changing the logits.
    """
    generator = torch.Generator().manual_seed(seed)
    kept = model.state_dict(keep_vars=True)  # parameters, and the buffers that are saved
    for name, value in dict(sorted(kept.items())).items():
        if not value.is_floating_point() or value.numel() == 0:
            continue
        noise = torch.randn(value.shape, generator=generator)
        spread = float(value.std(correction=0))
        if not math.isfinite(spread):
            raise AssertionError(f"{name} is not initialised")
        if spread == 0.0:
            value.add_(noise, alpha=0.2)
        elif value.dim() > 1 and spread < SPREAD:
            value.mul_(SPREAD / spread)
