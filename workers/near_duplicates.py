"""Detection of nearly equal completions, by their tokens alone. Numpy only."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from workers.ragged import Ragged

N = 3
MULTIPLIERS = np.array([0x9E3779B97F4A7C15, 0xC2B2AE3D27D4EB4F, 0x165667B19E3779F9], np.uint64)  # odd, of xxHash
PADDING = np.uint64(2**64 - 1)  # no token


class NearDuplicates:
    """Jaccard similarity of completions: shared distinct token 3-grams over all distinct token 3-grams.

    One changed token changes three 3-grams: of L different ones, 3 are replaced and the similarity is (L − 3)/(L + 3),
    so that at a threshold of 0.9 two answers that differ in one token are duplicates from 59 tokens on. Answers that
    only repeat a block of tokens a different number of times have the same 3-grams. The order of equal 3-grams is not
    seen. Completions of fewer than three tokens are one 3-gram. 3-grams are compared by 64-bit hashes.
    """

    def __init__(self, completions: Ragged, threshold: float) -> None:
        """Compare `completions` at `threshold`: similarity from which two are nearly equal, in (0, 1]."""
        self._completions, self._threshold = completions, threshold
        self._ngrams: dict[int, NDArray[np.uint64]] = {}

    def __call__(self, first: int, second: int) -> bool:
        """Return whether two completions, given by index, are nearly equal."""
        one, other = self._of(first), self._of(second)
        fewer, more = sorted((len(one), len(other)))
        if fewer < self._threshold * more:  # the similarity is at most their ratio
            return False
        shared = len(np.intersect1d(one, other, assume_unique=True))
        return shared >= self._threshold * (len(one) + len(other) - shared)

    def forget(self) -> None:
        """Release the 3-grams computed so far."""
        self._ngrams.clear()

    def _of(self, index: int) -> NDArray[np.uint64]:
        if index not in self._ngrams:
            self._ngrams[index] = ngrams(self._completions[index])
        return self._ngrams[index]


def ngrams(tokens: NDArray[np.int32]) -> NDArray[np.uint64]:
    """Return the hashes of the distinct 3-grams of `tokens`, sorted."""
    padded = np.full(max(N, len(tokens)), PADDING, np.uint64)
    padded[: len(tokens)] = tokens
    windows = np.lib.stride_tricks.sliding_window_view(padded, N)
    return np.unique((windows * MULTIPLIERS).sum(1, dtype=np.uint64))
