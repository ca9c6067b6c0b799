"""Layout of a micro-batch in a model's input.

packed     one row of all positions, [1, S]; completions share their prompt
unshared   one row of all positions, [1, S'], each completion with its own copy of the prompt
apart      one row per completion, [n, L], padded at the end: for models that do not support packed rows
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from workers.packing import Packed

WASTE = 0.25  # maximum share of padding in a rectangle
SMALL = 64  # pieces of at most so many keys share a rectangle regardless of padding: another call costs more


@dataclass(frozen=True, kw_only=True, slots=True)
class Packing:
    """Way in which rows are given to a model. Example: a Mamba model reads completions apart: `Packing(apart=True)`."""

    apart: bool = False  # each completion is a row of its own
    max_shared_length: int | None = None  # tokens; longer sequences need positions encoded by their own length


PACKED = Packing()


@dataclass(frozen=True, slots=True)
class Rectangle:
    """Padded pieces of nearly equal length: n pieces of Lq queries and Lk keys.

    Padding points at real positions. It is masked or never read.
    """

    queries: Tensor  # [n * Lq] int64 indices of flat positions
    keys: Tensor  # [n * Lk] int64 indices of flat positions
    real: Tensor  # [positions of these pieces] int64: index of each in `queries`
    flat: Tensor  # [positions of these pieces] int64: index of each in the flat array
    num_pieces: int
    mask: Tensor | None  # [n, 1, Lq, Lk] bool; None: queries are keys, plain causal


@dataclass(frozen=True, eq=False)
class Layout:
    """Arrangement of a model's input, computed once per micro-batch and used by every layer."""

    rows: Tensor  # [S] row of each position of the input
    segments: Tensor  # [S]
    positions: Tensor | None = None  # [S] within the row
    packed: Packed | None = None  # None: unused
    apart: bool = False
    taken: Tensor | None = None  # [n, L] flat position at each place of the input; None: all positions in one row
    read: Tensor | None = None  # [T] place in n * L at which each target is read: its predictor in its own text
    lengths: tuple[int, ...] | None = None  # input positions of each row, if rows are encoded by their own length

    @cached_property
    def rectangles(self) -> list[Rectangle]:
        """Rectangles of the rows, for attention on a CPU."""
        assert self.packed is not None
        shares = self.taken is None and bool((self.packed.row_sizes > 1).any())
        sizes = self.packed.row_sizes if shares else np.ones(int(self.rows[-1]) + 1, np.int64)
        return _rectangles(self.rows.numpy(), self.segments.numpy(), sizes > 1)

    @property
    def unread(self) -> int:
        """Number of tokens at the end of a text that are not inputs: 1 if the last token is only predicted, else 0."""
        assert self.packed is not None
        inputs = int((self.packed.segments > 0).sum())
        return int(inputs < int(self.packed.completion_lengths.sum()))

    def arranged(self, packing: Packing) -> Layout:
        """Return the layout of the same rows for a model with the given packing."""
        if packing == PACKED:
            return self
        assert self.packed is not None
        if packing.apart:
            return self if self.apart else _apart(self.packed, self.rows.device)
        limit = packing.max_shared_length
        if limit is None or int(self.packed.positions.max()) + 1 + self.unread <= limit:
            return self
        return _unshared(self.packed, self.rows.device)


def layout_of(packed: Packed, device: torch.device) -> Layout:
    """Return the packed layout of a micro-batch."""
    rows = np.repeat(np.arange(len(packed.row_lengths)), packed.row_lengths)
    return _layout(packed, rows, packed.segments, packed.positions, device)


def _layout(
    packed: Packed,
    rows: NDArray[Any],
    segments: NDArray[Any],
    positions: NDArray[Any],
    device: torch.device,
    **further: Any,
) -> Layout:
    return Layout(
        packed=packed,
        rows=torch.from_numpy(rows).to(device),
        segments=torch.from_numpy(segments).to(device),
        positions=torch.from_numpy(positions.astype(np.int64)).to(device),
        **further,
    )


def sequences(packed: Packed) -> list[NDArray[np.int64]]:
    """Return the flat positions of each text: a prompt followed by one of its completions."""
    texts = []
    begins = np.concatenate([[0], np.cumsum(packed.row_lengths)])
    for row, size in enumerate(packed.row_sizes):
        flat = np.arange(begins[row], begins[row + 1])
        segments = packed.segments[flat]
        prompt = flat[segments == 0]
        texts += [np.concatenate([prompt, flat[segments == k + 1]]) for k in range(size)]
    return texts


def _read(packed: Packed, texts: list[NDArray[np.int64]], begins: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return the place at which each target is read, if text i begins at `begins[i]`: [T].

    Each completion reads its own copy of the prompt: copies differ if positions are encoded by the length of the text.
    """
    predictors = np.split(packed.predictors, np.cumsum(packed.completion_lengths)[:-1])
    read = [begin + np.searchsorted(flat, own) for begin, flat, own in zip(begins, texts, predictors, strict=True)]
    return np.concatenate(read)


def _unshared(packed: Packed, device: torch.device) -> Layout:
    texts = sequences(packed)
    lengths, taken = [len(flat) for flat in texts], np.concatenate(texts)
    begins = np.concatenate([[0], np.cumsum(lengths)[:-1]])
    return _layout(
        packed,
        np.repeat(np.arange(len(texts)), lengths),
        np.zeros(len(taken), np.int32),
        packed.positions[taken],
        device,
        taken=torch.from_numpy(taken)[None].to(device),
        read=torch.from_numpy(_read(packed, texts, begins)).to(device),
        lengths=tuple(lengths),
    )


def _apart(packed: Packed, device: torch.device) -> Layout:
    texts = sequences(packed)
    lengths = [len(flat) for flat in texts]
    width = max(lengths)
    taken = np.stack([np.concatenate([flat, np.repeat(flat[:1], width - len(flat))]) for flat in texts])
    begins = np.arange(len(texts)) * width
    none = np.zeros(0, np.int64)
    return _layout(
        packed,
        none,
        none,
        none,
        device,
        apart=True,
        taken=torch.from_numpy(taken).to(device),
        read=torch.from_numpy(_read(packed, texts, begins)).to(device),
        lengths=tuple(lengths),
    )


# ------------------------------------------------------------------------------------------------ rectangles


def _rectangles(row_of: NDArray[Any], segments: NDArray[Any], shared: NDArray[np.bool_]) -> list[Rectangle]:
    """Cut rows into pieces and group them into rectangles.

    A row with one completion is one causal piece. A row with several is a causal piece for the prompt, and one piece
    for each completion, whose keys are the prompt and the completion itself.
    """
    segments = np.where(shared[row_of], segments, 0)
    begins = np.flatnonzero(np.diff(row_of, prepend=-1) | np.diff(segments, prepend=-1))
    lengths = np.diff(begins, append=len(row_of))
    first = np.searchsorted(row_of, np.arange(len(shared)))  # begin of each row
    prompts = np.bincount(row_of[begins], weights=np.where(segments[begins] == 0, lengths, 0)).astype(np.int64)
    prefixes = np.where(segments[begins] == 0, 0, prompts[row_of[begins]])
    result = []
    for alone in (True, False):
        pieces = np.flatnonzero((prefixes == 0) == alone)
        for cut in _similar(lengths, prefixes, pieces):
            result.append(_rectangle(begins[cut], lengths[cut], first[row_of[begins[cut]]], prefixes[cut]))
    return result


def _similar(lengths: Any, prefixes: Any, pieces: Any) -> list[Any]:
    """Group pieces of similar size, longest prefixes first."""
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
    """Return True if `piece` may share the rectangle of `head`, which has the longest prefix in it."""
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
        in_prefix = prefix_place < prefixes[:, None]  # [n, P]
        keys = np.concatenate([prefix_begins[:, None] + np.where(in_prefix, prefix_place, 0), own], axis=1)
        causal = np.broadcast_to(place[:, :, None] >= place[:, None, :], (len(begins), width, width))
        seen = np.broadcast_to(in_prefix[:, None, :], (len(begins), width, prefix_width))
        mask = torch.from_numpy(np.concatenate([seen, causal], axis=2))[:, None]
    return Rectangle(
        queries=torch.from_numpy(own.reshape(-1)),
        keys=torch.from_numpy(keys.reshape(-1)),
        real=torch.from_numpy(np.flatnonzero(inside)),
        flat=torch.from_numpy(own[inside]),
        num_pieces=len(begins),
        mask=mask,
    )
