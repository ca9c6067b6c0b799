"""Packed rows in transformers models: masks and attention are replaced by ours where the model supports it.

    model's mask function ──► packed_mask ──► attention layers ──► packed_attention
    (full, window, chunk)      (by rectangle)

A model that mixes tokens in another way than attention (state-space layers, linear attention, convolutions) or makes
its own masks reads each completion in a row of its own ("apart"), by its own forward pass.
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

NAME = "packed"  # name of our attention in transformers
PACKABLE_LAYERS = {"full_attention", "sliding_attention", "chunked_attention"}
SPARSE_LAYERS = {"indexed_attention", "compressed_sparse_attention", "heavily_compressed_attention"}
OWN_MASKS = {"doge"}  # models that change the mask in every layer
OWN_POSITIONS = {"kosmos_2_5_text_model"}  # models whose default positions do not start at 0
OWN_TABLES = "_ATTENTION_CLASSES"  # suffix of tables of attention classes, which do not contain ours
NEEDS_PICTURE = "its layers attend to a picture, and none is given"
NEEDING_MORE = {
    "diffusion_gemma": "it generates a block of text at once, by diffusion",
    "idefics": NEEDS_PICTURE,
    "kosmos-2": NEEDS_PICTURE,
}
BY_LENGTH = ("dynamic", "longrope")  # kinds of RoPE whose frequencies depend on the length of the text


def register() -> None:
    """Register our attention over packed rows in transformers."""
    transformers.AttentionInterface.register(NAME, packed_attention)
    AttentionMaskInterface.register(NAME, _mask)


def _mask(*, mask_function: Callable[..., Any], **_: Any) -> PackedMask:
    """Return the mask of the current rows under the model's own `mask_function`."""
    layout = READING.layout
    if layout is None:
        raise AttentionError("a packed mask was requested outside a forward pass over packed rows")
    return packed_mask(layout, None if mask_function is causal_mask_function else mask_function)


def reads_apart(model_class: type[Any], config: Any) -> str | None:
    """Return the reason why a model must read each completion in a row of its own; None: rows are packed.

    Raises:
        AttentionError: the model is not supported either way.
    """
    if reason := _needs_more(model_class, config):
        raise AttentionError(reason)
    text = config.get_text_config(decoder=True)
    layers = set(getattr(text, "layer_types", None) or ())
    if sparse := sorted(layers & SPARSE_LAYERS):
        raise AttentionError(f"in its layers of type {', '.join(sparse)} attention depends on the rest of the batch")
    if not model_class._supports_attention_backend or text.model_type in OWN_MASKS:
        return "it has its own attention implementation"
    if any(name.endswith(OWN_TABLES) for name in vars(sys.modules[model_class.__module__])):
        return "one of its modules selects attention from a table of its own"
    if text.model_type in OWN_POSITIONS:
        return "it computes its own positions"
    if getattr(text, "attn_temperature_tuning", False):  # Llama 4
        return "its queries are scaled by their position in a row"
    if model_class._is_stateful:
        return "its layers carry a state from token to token"
    foreign = sorted(layers - PACKABLE_LAYERS)
    return f"it has layers of type {', '.join(foreign)}" if foreign else None


def _needs_more(model_class: type[Any], config: Any) -> str | None:
    """Return the reason why a model needs more input than the tokens of a text; None: it does not."""
    parameters = inspect.signature(model_class.forward).parameters
    positional = [name for name, p in parameters.items() if p.default is p.empty and p.kind is p.POSITIONAL_OR_KEYWORD]
    if further := [name for name in positional if name not in ("self", "input_ids")]:
        return f"its forward pass requires {', '.join(further)} beside tokens"
    if config.model_type in NEEDING_MORE:
        return NEEDING_MORE[config.model_type]
    if "decoder_input_ids" in parameters:
        return "it is an encoder-decoder; use a decoder-only model"
    return None


# ------------------------------------------------------------------------------------------------ RoPE by length


def encode_by_own_length(model: nn.Module) -> int | None:
    """Patch every rotary embedding whose frequencies depend on text length to use the length of each row.

    Returns:
        The length in tokens up to which the frequencies do not depend on it; None: they never do.
    """
    limits = [_by_own_length(module) for module in model.modules() if _length_kinds(module)]
    return min(limits, default=None)


def _length_kinds(module: nn.Module) -> list[str | None]:
    """Return the layer types (None: all) for which a module encodes positions by the length of the text."""
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
        if layers in limits:  # reset, because dynamic frequencies grow with the longest text so far
            prefix = "" if layers is None else f"{layers}_"
            setattr(module, f"{prefix}max_seq_len_cached", limits[layers])
            setattr(module, f"{prefix}inv_freq", getattr(module, f"{prefix}original_inv_freq").to(x.device))
        return forward(x, positions, **further)

    @wraps(forward)
    def by_row(x: Tensor, position_ids: Tensor, *layer_type: Any, **further: Any) -> Any:
        if layer_type:
            further["layer_type"] = layer_type[0]
        layout = READING.layout
        if layout is None or layout.lengths is None:
            return alone(x, position_ids, **further)
        # The last token of a text may not be an input but counts for its length: encode one more position and drop it.
        encoded = []
        for length in layout.lengths:
            positions = torch.arange(length + layout.unread, device=position_ids.device)[None]
            encoded.append(tuple(part[:, :length] for part in alone(x, positions, **further)))
        return tuple(_together(parts, apart=layout.apart) for parts in zip(*encoded, strict=True))

    module.forward = by_row
    return min(limits.values())


def _together(parts: tuple[Tensor, ...], *, apart: bool) -> Tensor:
    """Combine [1, length, D] of each row: concatenated into one row, or padded, each in a row of its own."""
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
    """Restore the model's own attention, one text per row, within the context."""
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
