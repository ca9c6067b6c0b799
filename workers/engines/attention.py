"""Attention over packed rows: no padding, no token sees another row, completions share their prompt.

On CPU the rows are cut into pieces, and pieces of nearly equal length make a rectangle, one call of scaled-dot-product
attention each; on a GPU one `flex_attention` call with a block mask does the same (not run on a GPU yet).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cache
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from workers.packing import Packed

WASTE = 0.25  # share of a rectangle that may be padding before a new one is begun
SMALL = 64  # keys; pieces below share a rectangle whatever they waste: another call costs more


@dataclass(frozen=True, slots=True)
class Rectangle:
    """n pieces of nearly equal length: Lq queries each, Lk keys each. Padding points at real positions, and is masked
    or never read."""

    queries: Tensor  # [n * Lq] int64 into the flat positions
    keys: Tensor  # [n * Lk] int64 into the flat positions
    real: Tensor  # [positions of these pieces] int64: where in the queries each one stands
    flat: Tensor  # [positions of these pieces] int64: where in the flat array each one stands
    num_pieces: int
    mask: Tensor | None  # [n, 1, Lq, Lk] bool; None: queries are keys, plain causal


@dataclass(frozen=True, slots=True)
class Layout:
    """Who may see whom, worked out once per micro-batch and used by every layer."""

    rows: Tensor  # [S] which row each position belongs to
    segments: Tensor  # [S]
    rectangles: list[Rectangle] = field(default_factory=list)  # CPU
    block_mask: Any = None  # GPU: flex_attention's BlockMask


def layout_of(packed: Packed, device: torch.device) -> Layout:
    rows = np.repeat(np.arange(len(packed.row_lengths)), packed.row_lengths)
    row_ids, segments = torch.from_numpy(rows).to(device), torch.from_numpy(packed.segments).to(device)
    if device.type == "cpu":
        return Layout(row_ids, segments, rectangles=_rectangles(packed))
    return Layout(row_ids, segments, block_mask=_block_mask(row_ids, segments))


def _rectangles(packed: Packed) -> list[Rectangle]:
    """A row with one completion is one causal piece. A row with several is a causal prompt, and one piece for each
    completion whose keys are the prompt and itself: completions are never computed against each other."""
    row_of = np.repeat(np.arange(len(packed.row_lengths)), packed.row_lengths)
    shared = packed.row_sizes > 1
    segments = np.where(shared[row_of], packed.segments, 0)
    begins = np.flatnonzero(np.diff(row_of, prepend=-1) | np.diff(segments, prepend=-1))
    lengths = np.diff(begins, append=len(row_of))
    first = np.searchsorted(row_of, np.arange(len(packed.row_lengths)))  # where each row begins
    prompts = np.bincount(row_of[begins], weights=np.where(segments[begins] == 0, lengths, 0)).astype(np.int64)
    prefixes = np.where(segments[begins] == 0, 0, prompts[row_of[begins]])
    result = []
    for alone in (True, False):
        pieces = np.flatnonzero((prefixes == 0) == alone)
        for cut in _alike(lengths, prefixes, pieces):
            result.append(_rectangle(begins[cut], lengths[cut], first[row_of[begins[cut]]], prefixes[cut]))
    return result


def _alike(lengths: Any, prefixes: Any, pieces: Any) -> list[Any]:
    """The pieces in groups of similar size, longest prefixes first."""
    order = pieces[np.lexsort((-lengths[pieces], -prefixes[pieces]))]
    cuts: list[Any] = []
    start = 0
    for i in range(1, len(order) + 1):
        if i < len(order) and _fits(lengths, prefixes, order[start], order[i]):
            continue
        cuts.append(order[start:i])
        start = i
    return cuts if len(order) else []


def _fits(lengths: Any, prefixes: Any, head: int, piece: int) -> bool:
    """Whether `piece` may share the rectangle that `head` began, and has the longest prefix of."""
    if lengths[head] + prefixes[head] <= SMALL and lengths[piece] + prefixes[piece] <= SMALL:
        return True
    least = 1 - WASTE
    return bool(least * lengths[head] <= lengths[piece] <= lengths[head] and prefixes[piece] >= least * prefixes[head])


def _rectangle(begins: Any, lengths: Any, prefix_begins: Any, prefixes: Any) -> Rectangle:
    width, prefix_width = int(lengths.max()), int(prefixes.max())
    place = np.arange(width)[None]  # [1, Lq]
    inside = place < lengths[:, None]  # [n, Lq]
    own = begins[:, None] + np.where(inside, place, 0)  # [n, Lq]
    keys, mask = own, None
    if prefix_width:
        prefix_place = np.arange(prefix_width)[None]
        known = prefix_place < prefixes[:, None]  # [n, P]
        keys = np.concatenate([prefix_begins[:, None] + np.where(known, prefix_place, 0), own], axis=1)
        causal = np.broadcast_to(place[:, :, None] >= place[:, None, :], (len(begins), width, width))
        seen = np.broadcast_to(known[:, None, :], (len(begins), width, prefix_width))
        mask = torch.from_numpy(np.concatenate([seen, causal], axis=2))[:, None]
    return Rectangle(
        queries=torch.from_numpy(own.reshape(-1)),
        keys=torch.from_numpy(keys.reshape(-1)),
        real=torch.from_numpy(np.flatnonzero(inside)),
        flat=torch.from_numpy(own[inside]),
        num_pieces=len(begins),
        mask=mask,
    )


def packed_attention(
    module: torch.nn.Module,
    query: Tensor,  # [1, Hq, S, D]
    key: Tensor,  # [1, Hkv, S, D]
    value: Tensor,  # [1, Hkv, S, D]
    attention_mask: Tensor | None,
    *,
    layout: Layout,
    scaling: float | None = None,
    dropout: float = 0.0,
    **_: Any,
) -> tuple[Tensor, None]:
    """An attention function as transformers' `AttentionInterface` wants it; returns [1, S, Hq, D]."""
    if query.device.type != "cpu":
        out = _flex()(query, key, value, block_mask=layout.block_mask, scale=scaling, enable_gqa=True)
        return out.transpose(1, 2).contiguous(), None
    query, key, value = (x[0].transpose(0, 1) for x in (query, key, value))  # [S, H, D]
    out = torch.empty_like(query)
    for part in layout.rectangles:
        q = _cut(query, part.queries, part.num_pieces)
        k, v = (_cut(x, part.keys, part.num_pieces) for x in (key, value))
        o = F.scaled_dot_product_attention(
            q, k, v, attn_mask=part.mask, is_causal=part.mask is None, scale=scaling, enable_gqa=True
        )
        out = out.index_copy(0, part.flat, o.transpose(1, 2).flatten(0, 1)[part.real])
    return out[None], None


def _cut(flat: Tensor, index: Tensor, pieces: int) -> Tensor:
    """[S, H, D] -> [n, H, L, D]."""
    return flat[index].view(pieces, -1, *flat.shape[1:]).transpose(1, 2)


def _block_mask(rows: Tensor, segments: Tensor) -> Any:
    from torch.nn.attention.flex_attention import create_block_mask

    def visible(_batch: Tensor, _head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        shared = (segments[key] == 0) | (segments[key] == segments[query])
        return (rows[query] == rows[key]) & (key <= query) & shared

    return create_block_mask(visible, None, None, len(rows), len(rows), device=str(rows.device))


@cache
def _flex() -> Any:
    from torch.nn.attention.flex_attention import flex_attention

    return torch.compile(flex_attention, dynamic=True)
