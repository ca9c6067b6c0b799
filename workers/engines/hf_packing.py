"""How the models of transformers read packed rows: their masks and attention by ours, and which of them cannot.

    model's mask function ──► packed_mask ──► attention layers ──► packed_attention
    (full, window, chunk)      (by rectangle)

A model whose layers mix neighbours by something else than attention (state-space, linear attention, convolutions) or
that makes its masks itself reads each completion apart, by its own forward pass.
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import wraps
from typing import Any

import torch
import transformers
from torch import Tensor, nn
from transformers.masking_utils import AttentionMaskInterface, causal_mask_function

from workers.engines.attention import READING, AttentionError, PackedMask, packed_attention, packed_mask

NAME = "packed"  # by which transformers knows our attention
PACKABLE_LAYERS = {"full_attention", "sliding_attention", "chunked_attention"}
SPARSE_LAYERS = {"indexed_attention", "compressed_sparse_attention", "heavily_compressed_attention"}
OWN_MASKS = {"doge"}  # change the mask in every layer
OWN_POSITIONS = {"kosmos_2_5_text_model"}  # start at another number than 0, unless they are given
OWN_TABLES = "_ATTENTION_CLASSES"  # by name, in which ours is not
LOOKING = "its layers look at a picture beside the text, and none is given"
NEEDING_MORE = {
    "diffusion_gemma": "it writes a block of text at once, by diffusion, and not a token after another",
    "idefics": LOOKING,
    "kosmos-2": LOOKING,
}
BY_LENGTH = ("dynamic", "longrope")  # kinds of RoPE whose frequencies depend on how long the text is


def register() -> None:
    """Make our attention over packed rows known to transformers."""
    transformers.AttentionInterface.register(NAME, packed_attention)
    AttentionMaskInterface.register(NAME, _mask)


def _mask(*, mask_function: Callable[..., Any], **_: Any) -> PackedMask:
    """The mask of the rows that are being read, under the model's own `mask_function`."""
    layout = READING.layout
    if layout is None:
        raise AttentionError("packed attention was asked for a mask outside of a forward pass over packed rows")
    return packed_mask(layout, None if mask_function is causal_mask_function else mask_function)


def reads_apart(model_class: type[Any], config: Any) -> str | None:
    """Why models of this class and config must be given their rows apart; None: they may be packed.

    Raises:
        AttentionError: they are right neither way.
    """
    if reason := _needs_more(model_class, config):
        raise AttentionError(reason)
    text = config.get_text_config(decoder=True)
    layers = set(getattr(text, "layer_types", None) or ())
    if sparse := sorted(layers & SPARSE_LAYERS):
        raise AttentionError(
            f"what its layers of type {', '.join(sparse)} show a token depends on what else is in the batch"
        )
    if not model_class._supports_attention_backend or text.model_type in OWN_MASKS:
        return "its attention is its own"
    if any(name.endswith(OWN_TABLES) for name in vars(sys.modules[model_class.__module__])):
        return "a part of it takes its attention from a table of its own"
    if text.model_type in OWN_POSITIONS:
        return "it counts its own positions"
    if getattr(text, "attn_temperature_tuning", False):  # Llama 4
        return "its queries are scaled by where they stand in a row"
    if model_class._is_stateful:
        return "its layers carry a state from token to token"
    foreign = sorted(layers - PACKABLE_LAYERS)
    return f"it has layers of type {', '.join(foreign)}" if foreign else None


def _needs_more(model_class: type[Any], config: Any) -> str | None:
    """Why the tokens of a text are not all that a model of this class reads; None: they are."""
    given = inspect.signature(model_class.forward).parameters
    positional = [name for name, p in given.items() if p.default is p.empty and p.kind is p.POSITIONAL_OR_KEYWORD]
    if further := [name for name in positional if name not in ("self", "input_ids")]:
        return f"its forward pass requires {', '.join(further)} beside tokens"
    if config.model_type in NEEDING_MORE:
        return NEEDING_MORE[config.model_type]
    if "decoder_input_ids" in given:
        return "it is an encoder-decoder, which answers another text or a picture; give a decoder-only model"
    return None


# ------------------------------------------------------------------------------------------------ RoPE by length


def encode_by_own_length(model: nn.Module) -> int | None:
    """Make every rotary embedding whose frequencies depend on the length of a text take each row's own, in place.

    Returns the longest text, in tokens, of which they do not depend on it; None: of no text, whatever its length.
    """
    limits = [_by_own_length(module) for module in model.modules() if _length_kinds(module)]
    return min(limits, default=None)


def _length_kinds(module: nn.Module) -> list[str | None]:
    """The layer types (None: all) for which a module encodes positions by the length of the text."""
    kind = getattr(module, "rope_type", None)
    if isinstance(kind, str):
        return [None] if any(name in kind for name in BY_LENGTH) else []
    if isinstance(kind, Mapping):
        return [layers for layers, k in kind.items() if any(name in k for name in BY_LENGTH)]
    return []


def _by_own_length(module: Any) -> int:
    forward = module.forward
    limits = {layers: _limit(module, layers) for layers in _length_kinds(module)}

    def alone(x: Tensor, positions: Tensor, **further: Any) -> Any:
        layers = further.get("layer_type")
        if layers in limits:  # dynamic frequencies grow with the longest text yet, and would stay so
            prefix = "" if layers is None else f"{layers}_"
            setattr(module, f"{prefix}max_seq_len_cached", limits[layers])
            setattr(module, f"{prefix}inv_freq", getattr(module, f"{prefix}original_inv_freq").to(x.device))
        return forward(x, positions, **further)

    @wraps(forward)
    def by_row(x: Tensor, position_ids: Tensor, *given: Any, **further: Any) -> Any:
        if given:
            further["layer_type"] = given[0]
        layout = READING.layout
        if layout is None or layout.lengths is None:
            return alone(x, position_ids, **further)
        # The last token of a text may be no input, but counts for its length: one position more, and dropped.
        found = []
        for length in layout.lengths:
            positions = torch.arange(length + layout.unread, device=position_ids.device)[None]
            found.append(tuple(part[:, :length] for part in alone(x, positions, **further)))
        return tuple(_together(parts, apart=layout.apart) for parts in zip(*found, strict=True))

    module.forward = by_row
    return min(limits.values())


def _together(parts: tuple[Tensor, ...], *, apart: bool) -> Tensor:
    """[1, length, D] of each row: one after the other in one row, or each in a row of its own, filled up."""
    if not apart:
        return torch.cat(parts, dim=1)
    width = max(part.shape[1] for part in parts)
    return torch.cat([nn.functional.pad(part, (0, 0, 0, width - part.shape[1])) for part in parts])


def _limit(module: Any, layers: str | None) -> int:
    parameters = module.config.rope_parameters if layers is None else module.config.rope_parameters[layers]
    original = parameters.get("original_max_position_embeddings")
    kind = module.rope_type if layers is None else module.rope_type[layers]
    return int(original if kind == "longrope" and original else module.original_max_seq_len)


# ------------------------------------------------------------------------------------------------ plain


@contextmanager
def own_forward(model: Any) -> Iterator[None]:
    """Within it a model computes its attention as transformers does, one text in a row."""
    configs = {id(m.config): m.config for m in model.modules() if isinstance(m, transformers.PreTrainedModel)}
    before = {key: config._attn_implementation for key, config in configs.items()}
    layout, READING.layout = READING.layout, None
    for key, config in configs.items():
        if before[key] == NAME:
            config._attn_implementation_internal = "eager"
    try:
        yield
    finally:
        READING.layout = layout
        for key, config in configs.items():
            config._attn_implementation_internal = before[key]
