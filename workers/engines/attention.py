"""Attention over packed rows: no padding, no attention across rows, completions share their prompt.

The model's own attention (windows, chunks, soft-caps, sinks) is preserved: packing adds a condition to the mask, and
the model's mask function is called with positions within a row, not with places in the flat array.

On CPU the rows are cut into pieces, and pieces of nearly equal length form a rectangle: one call of
scaled-dot-product attention each. On a GPU one `flex_attention` call with a block mask does the same (not run on a GPU
yet).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any, TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor

from workers.engines.layout import Layout, Rectangle
from workers.engines.layout import layout_of as layout_of

Visible: TypeAlias = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]
"""Mask function of a model, in transformers' form: (batch, head, query position, key position) -> bool."""

BLOCK = 128  # queries and keys of a block of flex_attention
IGNORED = frozenset(
    {
        "cache_position",
        "is_causal",
        "logits_to_keep",
        "output_attentions",
        "output_hidden_states",
        "output_router_logits",
        "past_key_values",
        "position_embeddings",
        "position_ids",
        "return_dict",
        "sliding_window",  # in the mask already
        "use_cache",
    }
)
"""Arguments of an attention call that do not change its result."""


class AttentionError(Exception):
    """A model needs attention that cannot be computed over packed rows. The message says which."""


@dataclass(frozen=True, slots=True, eq=False)
class PackedMask:
    """Mask of the layers of one type. Packed attention receives it in place of a mask tensor."""

    layout: Layout
    masks: tuple[Tensor | None, ...] = ()  # CPU: one per rectangle, [n, 1, Lq, Lk] bool; None: plain causal
    blocks: Any = None  # GPU: flex_attention's BlockMask


class Reading:
    """Layout of the current forward pass, for masks and rotary positions, which cannot receive it as an argument.

    It is kept after the pass, because checkpointed layers run again in the backward pass.
    """

    layout: Layout | None = None  # None: the model's own forward pass, without packed rows


READING = Reading()


# ------------------------------------------------------------------------------------------------ masks


def packed_mask(layout: Layout, visible: Visible | None = None) -> PackedMask:
    """Return the mask of a layout's rows under the model's mask function `visible`; None: plain causal attention.

    Raises:
        AttentionError: a token would attend to later ones.
    """
    device = layout.rows.device
    if visible is not None:
        zero = torch.zeros((), dtype=torch.int64, device=device)
        if bool(visible(zero, zero, zero, zero + 1)):
            raise AttentionError("its tokens attend to later ones: with this config it is not a causal language model")
    if device.type != "cpu":
        return PackedMask(layout, blocks=_blocks(layout, visible))
    return PackedMask(layout, tuple(_rectangle_mask(layout, part, visible) for part in layout.rectangles))


def _rectangle_mask(layout: Layout, part: Rectangle, visible: Visible | None) -> Tensor | None:
    if visible is None:
        return part.mask
    positions = layout.positions
    assert positions is not None
    queries, keys = (positions[index].view(part.num_pieces, -1) for index in (part.queries, part.keys))
    zero = torch.zeros((), dtype=torch.int64)
    seen = visible(zero, zero, queries[:, None, :, None], keys[:, None, None, :])  # [n, 1, Lq, Lk]
    padding = torch.ones(len(part.queries), dtype=torch.bool)
    padding[part.real] = False  # padding must attend to something; its output is never read
    base = part.mask if part.mask is not None else torch.ones(seen.shape[-2:], dtype=torch.bool).tril()[None, None]
    allowed = base & (seen | padding.view(part.num_pieces, 1, -1, 1))
    return part.mask if bool((allowed == base).all()) else allowed


def _blocks(layout: Layout, visible: Visible | None) -> Any:
    """Build flex_attention's BlockMask band by band, in S · B memory instead of the S² of `create_block_mask`."""
    from torch.nn.attention.flex_attention import BlockMask

    rows, segments, positions = layout.rows, layout.segments, layout.positions
    assert positions is not None

    def mask_mod(batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        shared = (segments[key] == 0) | (segments[key] == segments[query])
        packed = (rows[query] == rows[key]) & (key <= query) & shared
        return packed if visible is None else packed & visible(batch, head, positions[query], positions[key])

    count = len(rows)
    bands = -(-count // BLOCK)
    shown = torch.zeros(bands, bands, dtype=torch.int64, device=rows.device)  # unmasked places of each block
    places, zero = torch.arange(count, device=rows.device), torch.zeros((), dtype=torch.int64, device=rows.device)
    for band in range(bands):
        queries, keys = places[band * BLOCK : (band + 1) * BLOCK], places[: (band + 1) * BLOCK]  # causal
        seen = mask_mod(zero, zero, queries[:, None], keys[None])
        seen = F.pad(seen, (0, -len(keys) % BLOCK, 0, BLOCK - len(queries)))
        shown[band, : band + 1] = seen.view(BLOCK, band + 1, BLOCK).sum((0, 2))
    partly = (shown > 0) & (shown < BLOCK**2)
    return BlockMask.from_kv_blocks(
        *_listed(partly), *_listed(shown == BLOCK**2), BLOCK_SIZE=BLOCK, mask_mod=mask_mod, seq_lengths=(count, count)
    )


def _listed(chosen: Tensor) -> tuple[Tensor, Tensor]:
    """Return for each band of queries the number of chosen key blocks, and all blocks with the chosen ones first."""
    first = chosen.int().argsort(dim=-1, descending=True, stable=True)
    return chosen.sum(-1, dtype=torch.int32)[None, None], first.to(torch.int32)[None, None]


# ------------------------------------------------------------------------------------------------ attention


def packed_attention(
    module: torch.nn.Module,
    query: Tensor,  # [1, Hq, S, D]
    key: Tensor,  # [1, Hkv, S, D]
    value: Tensor,  # [1, Hkv, S, Dv]
    attention_mask: Any,
    *,
    scaling: float | None = None,
    dropout: float = 0.0,
    softcap: float | None = None,
    s_aux: Tensor | None = None,
    **further: Any,
) -> tuple[Tensor, None]:
    """Attend over packed rows, with the signature of transformers' `AttentionInterface`: [1, S, Hq, Dv].

    Args:
        softcap: scores become softcap · tanh(score / softcap).
        s_aux: one sink per head [Hq], a score that takes part in the softmax and contributes nothing.

    Raises:
        AttentionError: an argument that would change the result is not supported.
    """
    unsupported = sorted(
        name for name, value in further.items() if name not in IGNORED and value is not None and value is not False
    )
    if dropout:
        unsupported.append("dropout")
    if unsupported or not isinstance(attention_mask, PackedMask):
        what = f"it asks for {', '.join(unsupported)}" if unsupported else "it makes its attention masks itself"
        raise AttentionError(f"{type(module).__name__} cannot attend over packed rows: {what}")
    if query.device.type != "cpu":
        return _flex_attention(query, key, value, attention_mask.blocks, scaling, softcap, s_aux), None
    query, key, value = (x[0].transpose(0, 1) for x in (query, key, value))  # [S, H, D]
    out = query.new_empty(*query.shape[:2], value.shape[-1])
    for part, mask in zip(attention_mask.layout.rectangles, attention_mask.masks, strict=True):
        q = _cut(query, part.queries, part.num_pieces)
        k, v = (_cut(x, part.keys, part.num_pieces) for x in (key, value))
        o = _attend(q, k, v, mask, scaling, softcap, s_aux)
        out = out.index_copy(0, part.flat, o.transpose(1, 2).flatten(0, 1)[part.real])
    return out[None], None


def _cut(flat: Tensor, index: Tensor, pieces: int) -> Tensor:
    """Gather pieces: [S, H, D] -> [n, H, L, D]."""
    return flat[index].view(pieces, -1, *flat.shape[1:]).transpose(1, 2)


def _attend(
    query: Tensor,  # [n, Hq, Lq, D]
    key: Tensor,  # [n, Hkv, Lk, D]
    value: Tensor,  # [n, Hkv, Lk, Dv]
    mask: Tensor | None,  # [n, 1, Lq, Lk] bool; None: causal
    scaling: float | None,
    softcap: float | None,
    sinks: Tensor | None,  # [Hq]
) -> Tensor:  # [n, Hq, Lq, Dv]
    if softcap is None and sinks is None:
        return F.scaled_dot_product_attention(
            query, key, value, attn_mask=mask, is_causal=mask is None, scale=scaling, enable_gqa=True
        )
    groups = query.shape[1] // key.shape[1]
    key, value = (x.repeat_interleave(groups, dim=1) for x in (key, value))
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    scores = (query @ key.transpose(-2, -1)) * scale
    if softcap is not None:
        scores = softcap * torch.tanh(scores / softcap)
    if mask is None:
        mask = torch.ones(scores.shape[-2:], dtype=torch.bool).tril()
    scores = scores.float().masked_fill(~mask, -torch.inf)
    if sinks is None:
        weights = scores.softmax(-1)
    else:
        sink = sinks.float().view(1, -1, 1, 1).expand(*scores.shape[:-1], 1)
        weights = torch.cat([scores, sink], dim=-1).softmax(-1)[..., :-1]
    return weights.to(value.dtype) @ value


def _flex_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    blocks: Any,
    scaling: float | None,
    softcap: float | None,
    sinks: Tensor | None,
) -> Tensor:  # [1, S, Hq, Dv]
    further: dict[str, Any] = {"block_mask": blocks, "scale": scaling, "enable_gqa": True}
    if softcap is not None:
        further["score_mod"] = _capped(softcap)
    if sinks is None:
        out: Tensor = _flex()(query, key, value, **further)
        return out.transpose(1, 2).contiguous()
    from torch.nn.attention.flex_attention import AuxRequest

    out, aux = _flex()(query, key, value, return_aux=AuxRequest(lse=True), **further)
    # The softmax over scores and sink equals the softmax over scores times e^lse / (e^lse + e^sink).
    share = torch.sigmoid(aux.lse - sinks.float().view(1, -1, 1))
    return (out * share[..., None].to(out.dtype)).transpose(1, 2).contiguous()


def _capped(softcap: float) -> Callable[..., Tensor]:
    def cap(score: Tensor, *_: Tensor) -> Tensor:
        return softcap * torch.tanh(score / softcap)

    return cap


@cache
def _flex() -> Any:
    from torch.nn.attention.flex_attention import flex_attention

    return torch.compile(flex_attention, dynamic=True)
