"""From rows to micro-batches: which rows go together on which rank, and their flat layout. Pure numpy.

One row is a prompt and the completions that share it, laid out flat:

    tokens     p0 p1 p2 | a0 a1 | b0 b1 b2      (the last token of a completion predicts nothing and is left out)
    positions   0  1  2 |  3  4 |  3  4  5      (every completion continues the prompt)
    segments    0  0  0 |  1  1 |  2  2  2      (a completion sees the prompt and itself)
    a0 and b0 are both predicted by p2.

The prompt is computed once for the whole row (shared prefix, arXiv 2410.20305). A row of more positions than the token
budget is cut between two completions, and its prompt computed once for each part: no number of any token changes.

A reward model is read *at* a token and not before it. With `pad` (its padding token) the last token of a completion is
an input, too, and each token is read where it stands:

    tokens     p0 p1 p2 | a0 a1 a2 | b0 b1 b2 b3
    a0 is read at a0; a padding token at the last other token before it, as AutoModelForSequenceClassification does.
"""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from workers.types import Ints, Ragged, TrainBatch


@dataclass(frozen=True, kw_only=True, slots=True)
class Packed:
    """The flat input of one forward pass: S input positions, T predicted tokens of n completions in R rows."""

    tokens: Ints  # [S]
    positions: Ints  # [S]
    segments: Ints  # [S] 0: prompt; k: the row's k-th completion
    row_lengths: NDArray[np.int64]  # [R] input positions of each row, sum S
    predictors: NDArray[np.int64]  # [T] which input position predicts each target
    targets: Ints  # [T]
    completion_lengths: NDArray[np.int64]  # [n] sum T
    row_sizes: NDArray[np.int64]  # [R] completions of each row, sum n


def input_lengths(
    prompts: Ragged, completions: Ragged, row_offsets: NDArray[np.int64], pad: int | None = None
) -> NDArray[np.int64]:
    """Input positions each row takes: [R]."""
    completion_inputs = np.concatenate([[0], np.cumsum(completions.lengths - (pad is None))])
    lengths: NDArray[np.int64] = completion_inputs[row_offsets[1:]] - completion_inputs[row_offsets[:-1]]
    return prompts.lengths + lengths


def members(row_offsets: NDArray[np.int64], rows: NDArray[np.int64]) -> NDArray[np.int64]:
    """The completions of the rows `rows`, row after row."""
    return Ragged(values=np.arange(row_offsets[-1]), offsets=row_offsets).take(rows).values


def cut(
    prompts: Ragged, completions: Ragged, row_offsets: NDArray[np.int64], budget: int, pad: int | None = None
) -> tuple[Ragged, NDArray[np.int64], NDArray[np.int64]]:
    """Rows of more than `budget` positions in parts, each the whole prompt and the next completions, as many as there
    is room for: (prompts [P], row offsets [P + 1], part offsets [R + 1]). Row r is now the rows part_offsets[r] up to
    part_offsets[r + 1]. A prompt with a single completion stays as long as it is; what is short enough stays as it is.

    A prompt of 3 with four completions of 6 tokens is 23 positions; at a budget of 15 two rows of 13.
    """
    num_parts = np.ones(len(prompts), np.int64)
    begins: list[int] = []
    inputs = completions.lengths - (pad is None)
    too_long = input_lengths(prompts, completions, row_offsets, pad) > budget
    for row in np.flatnonzero(too_long & (np.diff(row_offsets) > 1)):
        first, end = row_offsets[row : row + 2]
        empty = prompts.lengths[row]
        filled = empty + inputs[first]
        for i in range(first + 1, end):
            if filled + inputs[i] > budget:
                begins.append(i)
                num_parts[row] += 1
                filled = empty
            filled += inputs[i]
    if not begins:
        return prompts, row_offsets, np.arange(len(prompts) + 1)
    offsets = np.sort(np.concatenate([row_offsets, begins]))
    return (
        prompts.take(np.repeat(np.arange(len(prompts)), num_parts)),
        offsets,
        np.concatenate([[0], np.cumsum(num_parts)]),
    )


def cut_batch(
    batch: TrainBatch, rows: NDArray[np.int64], budget: int, pad: int | None = None
) -> tuple[TrainBatch, NDArray[np.int64], NDArray[np.int64]]:
    """`batch` with its long rows cut, which rows of it the rows `rows` have become, and of which row of `batch` each of
    its rows is a part. Nothing may belong to a row."""
    assert batch.margins is None, "a pair's margin is of both its completions"
    assert batch.labels is None
    assert batch.baseline is None
    prompts, offsets, parts = cut(batch.prompts, batch.completions, batch.row_offsets, budget, pad)
    row_of = np.repeat(np.arange(batch.num_rows), np.diff(parts))
    return replace(batch, prompts=prompts, row_offsets=offsets), members(parts, rows), row_of


def pack(
    prompts: Ragged,
    completions: Ragged,
    row_offsets: NDArray[np.int64],
    rows: NDArray[np.int64],
    pad: int | None = None,
) -> Packed:
    """Lay out the rows `rows`, in that order. With `pad` tokens are read where they stand, else where they are
    predicted."""
    sizes = np.diff(row_offsets)[rows]
    picked = members(row_offsets, rows)  # [n]
    lengths = completions.lengths[picked]
    prompt_lengths = prompts.lengths[rows]
    row_of = np.repeat(np.arange(len(rows)), sizes)  # [n]

    # Pieces in flat order: row 0's prompt, its completions, row 1's prompt, ...
    piece_row = np.concatenate([np.arange(len(rows)), row_of])
    piece_segment = np.concatenate([np.zeros(len(rows), np.int64), _counting(sizes) + 1])
    input_counts = lengths - (pad is None)
    piece_length = np.concatenate([prompt_lengths, input_counts])
    order = np.lexsort((piece_segment, piece_row))
    starts = np.empty(len(order), np.int64)
    starts[order] = np.concatenate([[0], np.cumsum(piece_length[order])[:-1]])
    prompt_starts, completion_starts = starts[: len(rows)], starts[len(rows) :]

    num_inputs = int(piece_length.sum())
    tokens = np.empty(num_inputs, np.int32)
    positions = np.empty(num_inputs, np.int32)
    prompt_at = np.repeat(prompt_starts, prompt_lengths) + _counting(prompt_lengths)
    tokens[prompt_at] = prompts.take(rows).values
    positions[prompt_at] = _counting(prompt_lengths)
    targets = completions.take(picked).values
    step = _counting(lengths)  # [T] place within its completion
    inputs = step < np.repeat(input_counts, lengths)  # without `pad` all but each completion's last token
    input_at = np.repeat(completion_starts, lengths) + step
    tokens[input_at[inputs]] = targets[inputs]
    positions[input_at[inputs]] = (np.repeat(prompt_lengths[row_of], lengths) + step)[inputs]
    last_prompt = np.repeat((prompt_starts + prompt_lengths - 1)[row_of], lengths)
    back = 1 if pad is None else _since(targets != pad, step)  # how far before a token it is read
    return Packed(
        tokens=tokens,
        positions=positions,
        segments=np.repeat(piece_segment[order], piece_length[order]).astype(np.int32),
        row_lengths=np.bincount(piece_row, weights=piece_length, minlength=len(rows)).astype(np.int64),
        predictors=np.where(step < back, last_prompt, input_at - back),
        targets=targets.astype(np.int32),
        completion_lengths=lengths,
        row_sizes=sizes,
    )


def _counting(lengths: NDArray[np.int64]) -> NDArray[np.int64]:
    """0..l-1 for each length: [2, 3] -> [0, 1, 0, 1, 2]."""
    ends = np.cumsum(lengths)
    return np.arange(ends[-1] if len(ends) else 0) - np.repeat(ends - lengths, lengths)


def _since(found: NDArray[np.bool_], step: NDArray[np.int64]) -> NDArray[np.int64]:
    """How many places back the newest True of the same run is, runs being numbered by `step`; where there is none,
    more than the run has: [F, T, F, F] of one run -> [1, 0, 1, 2]."""
    at = np.arange(len(found))
    newest = np.maximum.accumulate(np.where(found, at, -1)) if len(found) else at
    return np.minimum(at - newest, step + 1)


def plan(lengths: Sequence[int] | NDArray[np.int64], num_ranks: int, budget: int) -> list[list[NDArray[np.int64]]]:
    """Share rows out: result[rank][i] are the rows of that rank's i-th micro-batch.

    Every rank gets the same number of micro-batches (ZeRO's collectives demand it), so a short plan ends in empty ones.
    A micro-batch holds at most `budget` positions unless one row alone is longer. Loads are balanced by giving the
    longest remaining row to the emptiest bin (LPT: at most 4/3 of the best possible maximum, Graham 1969).
    """
    lengths = np.asarray(lengths, np.int64)
    num_micro = max(1, -(-int(lengths.sum()) // (budget * num_ranks)))
    while True:
        bins = _balance(lengths, num_micro * num_ranks)
        crowded = [b for b in bins if len(b) > 1 and lengths[b].sum() > budget]
        if not crowded:
            break
        num_micro += 1
    bins.sort(key=lambda b: -int(lengths[b].sum()))
    return [[bins[i * num_ranks + rank] for i in range(num_micro)] for rank in range(num_ranks)]


def shares(
    prompts: Ragged,
    completions: Ragged,
    row_offsets: NDArray[np.int64],
    rows: NDArray[np.int64],
    *,
    num_ranks: int,
    budget: int,
    pad: int | None = None,
    apart: bool = False,
) -> list[list[NDArray[np.int64]]]:
    """Share the rows `rows` out, as `plan` does: result[rank][i] are places in `rows`. With `apart` for a model that
    reads each completion in a row of its own, all as long as the longest."""
    if not apart:
        return plan(input_lengths(prompts, completions, row_offsets, pad)[rows], num_ranks, budget)
    sizes = np.diff(row_offsets)[rows]
    longest = np.asarray([completions.lengths[first:end].max() for first, end in _bounds(row_offsets, rows)], np.int64)
    return plan_apart(prompts.lengths[rows] + longest - (pad is None), sizes, num_ranks, budget)


def _bounds(row_offsets: NDArray[np.int64], rows: NDArray[np.int64]) -> list[tuple[int, int]]:
    return list(zip(row_offsets[rows].tolist(), row_offsets[rows + 1].tolist(), strict=True))


def plan_apart(
    widths: NDArray[np.int64], sizes: NDArray[np.int64], num_ranks: int, budget: int
) -> list[list[NDArray[np.int64]]]:
    """`plan` where every completion of a micro-batch takes as many positions as the longest of all: rows of similar
    width go together. `widths` [R]: of a row's longest completion with its prompt; `sizes` [R]: its completions."""
    bins: list[list[int]] = []
    count = 0
    for row in np.argsort(-widths, kind="stable").tolist():
        if not bins or (count + sizes[row]) * widths[bins[-1][0]] > budget:
            bins.append([])
            count = 0
        bins[-1].append(row)
        count += sizes[row]
    num_micro = max(1, -(-len(bins) // num_ranks))
    filled = [np.asarray(b, np.int64) for b in bins] + [np.zeros(0, np.int64)] * (num_micro * num_ranks - len(bins))
    return [[filled[i * num_ranks + rank] for i in range(num_micro)] for rank in range(num_ranks)]


def _balance(lengths: NDArray[np.int64], num_bins: int) -> list[NDArray[np.int64]]:
    heap = [(0, b) for b in range(num_bins)]
    members: list[list[int]] = [[] for _ in range(num_bins)]
    for row in np.argsort(-lengths, kind="stable"):
        load, chosen = heapq.heappop(heap)
        members[chosen].append(int(row))
        heapq.heappush(heap, (load + int(lengths[row]), chosen))
    return [np.asarray(m, np.int64) for m in members]


def updates(batch: TrainBatch, *, epochs: int, num_updates: int, seed: int) -> list[NDArray[np.int64]]:
    """The rows of each optimiser update, pass after pass; shuffled by `seed` when a pass has several updates."""
    rng = np.random.Generator(np.random.Philox(seed))
    result: list[NDArray[np.int64]] = []
    for _ in range(epochs if num_updates else 0):
        rows = rng.permutation(batch.num_rows) if num_updates > 1 else np.arange(batch.num_rows)
        result.extend(np.array_split(rows, num_updates))
    return result
