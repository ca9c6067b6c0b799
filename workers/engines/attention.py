"""Attention over packed rows: no padding, no token sees another row, completions share their prompt.

On CPU the rows are cut into rectangles of nearly equal length, each one call of scaled-dot-product attention; on a GPU
one `flex_attention` call with a block mask does the same (not run on a GPU yet).
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


@dataclass(frozen=True, slots=True)
class Rectangle:
    """Rows of nearly equal length: R rows of up to L positions."""

    index: Tensor  # [R * L] int64 into the flat positions; padding points at the row's own first position
    real: Tensor  # [positions of these rows] int64: where in the rectangle each one stands
    flat: Tensor  # [positions of these rows] int64: where in the flat array each one stands
    num_rows: int
    mask: Tensor | None  # [R, 1, L, L] bool; None: plain causal


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
    lengths = packed.row_lengths
    starts = np.concatenate([[0], np.cumsum(lengths)[:-1]])
    order = np.argsort(-lengths, kind="stable")
    cuts, first = [], 0
    for i in range(1, len(order) + 1):
        if i == len(order) or lengths[order[i]] < (1 - WASTE) * lengths[order[first]]:
            cuts.append(order[first:i])
            first = i
    return [_rectangle(packed, starts[rows], lengths[rows], packed.row_sizes[rows]) for rows in cuts]


def _rectangle(packed: Packed, starts: Any, lengths: Any, sizes: Any) -> Rectangle:
    width = int(lengths.max())
    place = np.arange(width)[None]  # [1, L]
    inside = place < lengths[:, None]  # [R, L]
    index = starts[:, None] + np.where(inside, place, 0)
    mask = None
    if (sizes > 1).any():
        segment = packed.segments[index]  # [R, L]
        same = (segment[:, None, :] == 0) | (segment[:, None, :] == segment[:, :, None])
        mask = torch.from_numpy(same & (place[:, None, :] <= place[:, :, None]))[:, None]
    return Rectangle(
        index=torch.from_numpy(index.reshape(-1)),
        real=torch.from_numpy(np.flatnonzero(inside)),
        flat=torch.from_numpy(index[inside]),
        num_rows=len(starts),
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
        q, k, v = (x[part.index].view(part.num_rows, -1, *x.shape[1:]).transpose(1, 2) for x in (query, key, value))
        o = F.scaled_dot_product_attention(
            q, k, v, attn_mask=part.mask, is_causal=part.mask is None, scale=scaling, enable_gqa=True
        )
        out = out.index_copy(0, part.flat, o.transpose(1, 2).flatten(0, 1)[part.real])
    return out[None], None


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
