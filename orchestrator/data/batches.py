"""Row indices of each batch, as a pure function of step and seed, so that a resume needs no cursor."""

from __future__ import annotations

from functools import lru_cache
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

MANY_ROWS = 2**16
PARTS = 8  # that the order of many rows is made in
Rows: TypeAlias = NDArray[np.int32] | NDArray[np.int64]


def batch_indices(num_rows: int, batch_size: int, step: int, seed: int) -> NDArray[np.int64]:
    """Return the row indices of batch `step` (0-based): [batch_size], each below `num_rows`.

    The rows form one endless stream that is cut into batches. Each epoch shuffles all rows, and a batch may span two
    epochs. No batch contains a row twice unless it is larger than the dataset: two groups of one prompt would consist
    of the same completions. The result does not depend on the version of numpy.

    >>> [batch_indices(3, 2, step, seed=0).tolist() for step in range(3)]
    [[0, 1], [2, 1], [2, 0]]
    """
    if num_rows < 1 or batch_size < 1 or step < 0:
        raise ValueError(f"no batch {step} of {batch_size} out of {num_rows} rows")
    first, last = step * batch_size, (step + 1) * batch_size
    epochs = range(first // num_rows, (last - 1) // num_rows + 1)
    # Copies of the parts, and never of a whole order: of a million rows it takes 4 MB.
    parts = [
        _epoch_order(num_rows, batch_size, epoch, seed)[max(0, first - epoch * num_rows) : last - epoch * num_rows]
        for epoch in epochs
    ]
    return np.concatenate(parts).astype(np.int64)


@lru_cache(maxsize=8)
def cut_batches(num_rows: int, sizes: tuple[int, ...], seed: int) -> tuple[NDArray[np.int64], ...]:
    """Cut the same stream of rows into batches of different sizes. Return the row indices of each batch.

    For equal sizes these are the batches of `batch_indices`. A batch holds at most all rows.

    >>> [batch.tolist() for batch in cut_batches(3, (1, 2, 3), seed=0)]
    [[0], [1, 2], [2, 1, 0]]
    """
    stream = Stream(num_rows, seed)
    return tuple(stream.take(size) for size in sizes)


class Stream:
    """Endless stream of shuffled rows, from which batches of any size are taken one after the other."""

    def __init__(self, num_rows: int, seed: int) -> None:
        self._num_rows, self._seed = num_rows, seed
        self._left, self._epoch = shuffled(num_rows, 0, seed), 0

    def take(self, size: int) -> NDArray[np.int64]:
        """Return the next rows, none of them twice: [size], at most all rows.

        Where an epoch ends within a batch, rows that the batch already has come after it.
        """
        size = min(size, self._num_rows)
        batch, self._left = self._left[:size], self._left[size:]
        if len(batch) < size:
            self._epoch += 1
            order = shuffled(self._num_rows, self._epoch, self._seed)
            further = np.flatnonzero(~np.isin(order, batch))[: size - len(batch)]
            batch, self._left = np.concatenate([batch, order[further]]), np.delete(order, further)
        return batch


@lru_cache(maxsize=2)
def _epoch_order(num_rows: int, batch_size: int, epoch: int, seed: int) -> Rows:
    """Return the order of an epoch.

    If the epoch starts within a batch, rows that this batch already has come after the batch.
    """
    if batch_size > num_rows:
        return _order(num_rows, epoch, seed)
    first = epoch  # becomes the latest epoch that starts with a batch: its order does not depend on earlier ones
    while first * num_rows % batch_size:
        first -= 1
    order = _order(num_rows, first, seed)
    for later in range(first + 1, epoch + 1):
        num_taken = later * num_rows % batch_size  # rows that the batch has from the epoch before
        taken, order = order[num_rows - num_taken :], _order(num_rows, later, seed)
        of_batch = np.flatnonzero(~np.isin(order, taken))[: batch_size - num_taken]
        order = np.concatenate([order[of_batch], np.delete(order, of_batch)])
    return order


def shuffled(num_rows: int, epoch: int, seed: int) -> NDArray[np.int64]:
    """Return the numbers below `num_rows` in a random order, which does not depend on the version of numpy."""
    return _order(num_rows, epoch, seed).astype(np.int64)


def _order(num_rows: int, epoch: int, seed: int) -> Rows:
    """Return the order of `shuffled` in half the memory, and without the memory of a sort of many rows.

    The random bits of all rows are drawn again for each part of the order, which is sorted by itself.
    """
    # Sort raw bits: numpy guarantees their stream across versions, unlike that of `permutation`.
    parts = 1 if num_rows <= MANY_ROWS else PARTS
    order: Rows = np.empty(num_rows, np.int32) if num_rows < 2**31 else np.empty(num_rows, np.int64)
    filled = 0
    for part in range(parts):
        low, high = part * 2**64 // parts, (part + 1) * 2**64 // parts - 1
        bits = np.random.Philox(np.random.SeedSequence((seed, epoch)))
        keys, rows = [], []
        for first in range(0, num_rows, MANY_ROWS):
            raw = bits.random_raw(min(MANY_ROWS, num_rows - first))
            within = np.flatnonzero((raw >= np.uint64(low)) & (raw <= np.uint64(high)))
            keys.append(raw[within])
            rows.append((within + first).astype(order.dtype))
        of_part = np.concatenate(rows)[np.argsort(np.concatenate(keys), kind="stable")]
        order[filled : filled + len(of_part)] = of_part
        filled += len(of_part)
    return order
