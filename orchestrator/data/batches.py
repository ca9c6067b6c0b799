"""Which rows a step takes: a pure function of its arguments, so that a resume needs no cursor."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
from numpy.typing import NDArray


def batch_indices(num_rows: int, batch_size: int, step: int, seed: int) -> NDArray[np.int64]:
    """Rows of batch `step` (from 0): [batch_size] indices below `num_rows`.

    The rows form one endless stream, every epoch in a new order, cut into batches: each row comes once per
    epoch, and a batch may run over the end of one. No batch has a row twice, where there are as many rows as it takes:
    two groups of one prompt would be the same completions. The same seed gives the same batches with any numpy.

    >>> [batch_indices(3, 2, step, seed=0).tolist() for step in range(3)]
    [[0, 1], [2, 1], [2, 0]]
    """
    if num_rows < 1 or batch_size < 1 or step < 0:
        raise ValueError(f"no batch {step} of {batch_size} out of {num_rows} rows")
    first, last = step * batch_size, (step + 1) * batch_size
    epochs = range(first // num_rows, (last - 1) // num_rows + 1)
    stream = np.concatenate([_epoch_order(num_rows, batch_size, epoch, seed) for epoch in epochs])
    start = first - epochs[0] * num_rows
    return stream[start : start + batch_size]


@lru_cache(maxsize=4)
def _epoch_order(num_rows: int, batch_size: int, epoch: int, seed: int) -> NDArray[np.int64]:
    """Of an epoch that begins within a batch: the rows that the batch has of the epoch before come after the batch."""
    if batch_size > num_rows:
        return _shuffled(num_rows, epoch, seed)
    first = epoch  # the last epoch that begins with a batch: nothing before it has a say
    while first * num_rows % batch_size:
        first -= 1
    order = _shuffled(num_rows, first, seed)
    for later in range(first + 1, epoch + 1):
        begun = later * num_rows % batch_size  # rows that the batch has already
        there, order = order[num_rows - begun :], _shuffled(num_rows, later, seed)
        of_batch = np.flatnonzero(~np.isin(order, there))[: batch_size - begun]
        order = np.concatenate([order[of_batch], np.delete(order, of_batch)])
    return order


def _shuffled(num_rows: int, epoch: int, seed: int) -> NDArray[np.int64]:
    # Sorted raw bits: numpy promises never to change that stream, unlike that of `permutation`.
    raw = np.random.Philox(np.random.SeedSequence((seed, epoch))).random_raw(num_rows)
    return np.argsort(raw, kind="stable").astype(np.int64)
