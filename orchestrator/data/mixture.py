"""Rows of each batch from several sources with given shares, as a pure function of step and seed.

    shares 0.7, 0.3 and batches of 8     5.6 and 2.4 rows: 6 + 2, 5 + 3, 6 + 2, 5 + 3, 6 + 2, …

A batch has the share of each source rounded down or up, and the sum of the batches so far is within a row or two of it,
however long the run. The rows of a source are an endless stream: all of them shuffled, then all shuffled again. So a
source is repeated as often as its share demands, and no batch has a row twice.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from orchestrator.data.batches import Stream, shuffled

MIXTURE = 3  # key of the random streams of sources, apart from those of prompts, resampling and mixed pairs
EXACT = 1e-9  # rounding of shares: 0.3 · 10 is 3
KEPT = 4  # batches that are kept: a source asks for a step several times


def most_rows(share: float, batch_size: int) -> int:
    """Return how many rows of a source with this share are in a batch, at most."""
    return math.ceil(share * batch_size - EXACT)


class WeightedOrder:
    """Order in which the rows of several sources are trained on.

    `rows(step)` depends on the step and the arguments alone. It is computed from the first step on, so that steps are
    best asked for in their order.
    """

    def __init__(self, sizes: Sequence[int], shares: Sequence[float], *, batch_size: int, seed: int) -> None:
        """Create the order.

        Args:
            sizes: number of rows of each source; each has as many rows as a batch takes of it.
            shares: share of each source; they add up to 1.
        """
        assert len(sizes) == len(shares)
        assert math.isclose(sum(shares), 1), shares
        assert all(most_rows(share, batch_size) <= size for size, share in zip(sizes, shares, strict=True))
        self._sizes, self._batch_size, self._seed = sizes, batch_size, seed
        exact = np.asarray(shares) * batch_size
        self._whole = np.floor(exact + EXACT).astype(np.int64)  # rows of each source that every batch has
        self._parts = np.maximum(exact - self._whole, 0)
        self._firsts = np.concatenate([[0], np.cumsum(sizes)[:-1]])
        self._begin()

    def _begin(self) -> None:
        seeds = [int(np.random.SeedSequence([self._seed, MIXTURE, i]).generate_state(1)[0]) for i in range(self._count)]
        self._streams = [Stream(size, seed) for size, seed in zip(self._sizes, seeds, strict=True)]
        self._added = np.zeros(self._count, np.int64)  # rows beyond the whole ones that each source has had
        self._next = 0
        self._batches: dict[int, NDArray[np.int64]] = {}

    @property
    def _count(self) -> int:
        return len(self._sizes)

    def rows(self, step: int) -> NDArray[np.int64]:
        """Return the rows of a batch, as indices into the rows of all sources: [batch_size]."""
        if step not in self._batches and step < self._next:
            self._begin()
        while self._next <= step:
            self._batches[self._next] = self._batch(self._next)
            self._batches.pop(self._next - KEPT, None)
            self._next += 1
        return self._batches[step]

    def _batch(self, step: int) -> NDArray[np.int64]:
        counts = self._whole.copy()
        missing = self._batch_size - int(counts.sum())
        owed = (step + 1) * self._parts - self._added
        owed[self._parts <= EXACT] = -np.inf  # their share is whole
        most_owed = np.argsort(-owed, kind="stable")[:missing]
        counts[most_owed] += 1
        self._added[most_owed] += 1
        taken = [first + s.take(int(n)) for first, s, n in zip(self._firsts, self._streams, counts, strict=True)]
        batch: NDArray[np.int64] = np.concatenate(taken)[shuffled(self._batch_size, step, self._seed)]
        return batch
