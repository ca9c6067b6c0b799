"""Packing of rows into micro-batches: their distribution over ranks and their flat layout. Numpy only.

One row is a prompt and the completions that share it, laid out flat:

    tokens     p0 p1 p2 | a0 a1 | b0 b1 b2      (the last token of a completion predicts nothing and is left out)
    positions   0  1  2 |  3  4 |  3  4  5      (every completion continues the prompt)
    segments    0  0  0 |  1  1 |  2  2  2      (a completion attends to the prompt and itself)
    a0 and b0 are both predicted by p2.

The prompt is computed once for the whole row (shared prefix, arXiv 2410.20305). A row that exceeds the token budget is
cut between two completions, and its prompt is computed once for each part. The results are the same.

The output of a reward model is read at a token, not before it. Given `pad`, its padding token, the last token of a
completion is an input too, and the output for each token is read at its own position:

    tokens     p0 p1 p2 | a0 a1 a2 | b0 b1 b2 b3
    a0 is read at a0; a padding token at the last other token before it, as AutoModelForSequenceClassification does.
"""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from workers.ragged import Ragged
from workers.types import Ints, TrainBatch


@dataclass(frozen=True, kw_only=True, slots=True)
class Packed:
    """Flat input of one forward pass: S input positions, T target tokens of n completions in R rows."""

    tokens: Ints  # [S]
    positions: Ints  # [S]
    segments: Ints  # [S] 0: prompt; k: the row's k-th completion
    row_lengths: NDArray[np.int64]  # [R] input positions of each row, sum S
    predictors: NDArray[np.int64]  # [T] input position from which each target is predicted
    targets: Ints  # [T]
    completion_lengths: NDArray[np.int64]  # [n] sum T
    row_sizes: NDArray[np.int64]  # [R] number of completions of each row, sum n


def input_lengths(
    prompts: Ragged, completions: Ragged, row_offsets: NDArray[np.int64], pad: int | None = None
) -> NDArray[np.int64]:
    """Return the number of input positions of each row: [R]."""
    completion_inputs = np.concatenate([[0], np.cumsum(completions.lengths - (pad is None))])
    lengths: NDArray[np.int64] = completion_inputs[row_offsets[1:]] - completion_inputs[row_offsets[:-1]]
    return prompts.lengths + lengths


def members(row_offsets: NDArray[np.int64], rows: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return the completions of the rows `rows`, row by row."""
    return Ragged(values=np.arange(row_offsets[-1]), offsets=row_offsets).take(rows).values


def cut(
    prompts: Ragged, completions: Ragged, row_offsets: NDArray[np.int64], budget: int, pad: int | None = None
) -> tuple[Ragged, NDArray[np.int64], NDArray[np.int64]]:
    """Cut rows of more than `budget` positions into parts: the prompt with as many further completions as fit.

    A prompt of 3 tokens with four completions of 6 takes 23 positions; a budget of 15 makes it two rows of 13. A row
    with one completion is never cut.

    Returns:
        Prompts [P], row offsets [P + 1] and part offsets [R + 1]. Row r has become the rows
        part_offsets[r]:part_offsets[r + 1].
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
    """Cut the long rows of `batch`, whose fields belong to tokens or completions.

    All parts of a row have its objective.

    Returns:
        The batch, the rows that `rows` have become, and for each row of the new batch the row that it is a part of.
    """
    assert batch.margins is None, "a margin belongs to a whole pair"
    assert batch.labels is None
    assert batch.baseline is None
    prompts, offsets, parts = cut(batch.prompts, batch.completions, batch.row_offsets, budget, pad)
    row_of = np.repeat(np.arange(batch.num_rows), np.diff(parts))
    objectives = None if batch.objectives is None else batch.objectives[row_of]
    cut_rows = replace(batch, prompts=prompts, row_offsets=offsets, objectives=objectives)
    return cut_rows, members(parts, rows), row_of


def pack(
    prompts: Ragged,
    completions: Ragged,
    row_offsets: NDArray[np.int64],
    rows: NDArray[np.int64],
    pad: int | None = None,
) -> Packed:
    """Lay out the rows `rows`, in that order.

    Without `pad` each target is read where it is predicted, with `pad` (of a reward model) at its own position.
    """
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
    step = _counting(lengths)  # [T] index within the completion
    inputs = step < np.repeat(input_counts, lengths)  # without `pad` all but each completion's last token
    input_at = np.repeat(completion_starts, lengths) + step
    tokens[input_at[inputs]] = targets[inputs]
    positions[input_at[inputs]] = (np.repeat(prompt_lengths[row_of], lengths) + step)[inputs]
    last_prompt = np.repeat((prompt_starts + prompt_lengths - 1)[row_of], lengths)
    back = 1 if pad is None else _distance_to_last(targets != pad, step)  # distance from a token to where it is read
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
    """Count from 0 to l - 1 for each length l: [2, 3] -> [0, 1, 0, 1, 2]."""
    ends = np.cumsum(lengths)
    return np.arange(ends[-1] if len(ends) else 0) - np.repeat(ends - lengths, lengths)


def _distance_to_last(marks: NDArray[np.bool_], step: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return the distance from each place back to the last True of its run; `step` is the index within the run.

    Where the run has no True so far, the distance leads just before the run: [F, T, F, F] -> [1, 0, 1, 2].
    """
    at = np.arange(len(marks))
    last = np.maximum.accumulate(np.where(marks, at, -1)) if len(marks) else at
    return np.minimum(at - last, step + 1)


def plan(lengths: Sequence[int] | NDArray[np.int64], num_ranks: int, budget: int) -> list[list[NDArray[np.int64]]]:
    """Distribute rows of the given lengths: result[rank][i] are the rows of that rank's i-th micro-batch.

    Every rank gets the same number of micro-batches, which ZeRO's collectives require; the last ones may be empty. A
    micro-batch has at most `budget` positions, unless a single row is longer. Loads are balanced by giving the longest
    remaining row to the emptiest bin (LPT: at most 4/3 of the best possible maximum, Graham 1969).
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
    """Distribute the rows `rows`: result[rank][i] are the indices into `rows` of that rank's i-th micro-batch.

    `apart` is for a model that reads each completion in a row of its own, padded to the longest.
    """
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
    """Distribute rows like `plan`, for completions that are padded to the longest one of their micro-batch.

    Rows of similar width share a micro-batch.

    Args:
        widths: positions of each row's prompt with its longest completion [R].
        sizes: number of completions of each row [R].
    """
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
    """Return the rows of each optimiser update, pass by pass; shuffled by `seed` if a pass has several updates."""
    rng = np.random.Generator(np.random.Philox(seed))
    result: list[NDArray[np.int64]] = []
    for _ in range(epochs if num_updates else 0):
        rows = rng.permutation(batch.num_rows) if num_updates > 1 else np.arange(batch.num_rows)
        result.extend(np.array_split(rows, num_updates))
    return result
