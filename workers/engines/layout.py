"""Where the positions of a micro-batch stand in a model's input, and which rows they belong to.

packed     one row of all positions, [1, S]; completions share their prompt
unshared   one row of all positions, [1, S'], each completion with a prompt of its own
apart      one row per completion, [n, L], filled up at the end: for models that cannot tell packed rows apart
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

WASTE = 0.25  # share of a rectangle that may be padding before a new one is begun
SMALL = 64  # keys; pieces below share a rectangle whatever they waste: another call costs more


@dataclass(frozen=True, kw_only=True, slots=True)
class Packing:
    """How a model may be given its rows. Example: a Mamba model reads them apart: `Packing(apart=True)`."""

    apart: bool = False  # it mixes what stands in one row, whatever the mask says
    max_shared_length: int | None = None  # tokens; the positions of longer sequences are encoded by their own length


PACKED = Packing()


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


@dataclass(frozen=True, eq=False)
class Layout:
    """A model's input and who may see whom in it, worked out once per micro-batch and used by every layer."""

    rows: Tensor  # [S] which row each position of the input belongs to
    segments: Tensor  # [S]
    positions: Tensor | None = None  # [S] within the row
    packed: Packed | None = None  # None: nothing of the rows is asked for
    apart: bool = False
    taken: Tensor | None = None  # [n, L] which flat position stands at each place of the input; None: all, in one row
    read: Tensor | None = None  # [T] where in n * L each predicted token is read: at its predictor in its own text
    lengths: tuple[int, ...] | None = None  # input positions of each row, where rows are read by their own length

    @cached_property
    def rectangles(self) -> list[Rectangle]:
        """The pieces of the rows, for attention on a CPU."""
        assert self.packed is not None
        shares = self.taken is None and bool((self.packed.row_sizes > 1).any())
        sizes = self.packed.row_sizes if shares else np.ones(int(self.rows[-1]) + 1, np.int64)
        return _rectangles(self.rows.numpy(), self.segments.numpy(), sizes > 1)

    @property
    def unread(self) -> int:
        """Tokens at the end of a row's text that are no input: the last one, where it only is predicted."""
        assert self.packed is not None
        inputs = int((self.packed.segments > 0).sum())
        return int(inputs < int(self.packed.completion_lengths.sum()))

    def arranged(self, packing: Packing) -> Layout:
        """Return the layout in which a model that reads rows by `packing` is given the same rows."""
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
    """Return the flat positions of each completion after those of its prompt."""
    found = []
    begins = np.concatenate([[0], np.cumsum(packed.row_lengths)])
    for row, size in enumerate(packed.row_sizes):
        flat = np.arange(begins[row], begins[row + 1])
        segments = packed.segments[flat]
        prompt = flat[segments == 0]
        found += [np.concatenate([prompt, flat[segments == k + 1]]) for k in range(size)]
    return found


def _read(packed: Packed, texts: list[NDArray[np.int64]], begins: NDArray[np.int64]) -> NDArray[np.int64]:
    """Where each predicted token is read, if text i begins at `begins[i]`: [T]. The end of a prompt has as many copies
    as there are completions, and they differ where positions are encoded by a text's length."""
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
    """A row with one completion is one causal piece. A row with several is a causal prompt, and one piece for each
    completion whose keys are the prompt and itself: completions are never computed against each other."""
    segments = np.where(shared[row_of], segments, 0)
    begins = np.flatnonzero(np.diff(row_of, prepend=-1) | np.diff(segments, prepend=-1))
    lengths = np.diff(begins, append=len(row_of))
    first = np.searchsorted(row_of, np.arange(len(shared)))  # where each row begins
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
