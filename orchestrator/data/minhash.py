"""MinHash of sets: signatures of many sets at once, and sets one by one. The only module that uses rensa."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray


def signatures(hashes: NDArray[np.uint64], offsets: NDArray[np.int64], *, size: int, seed: int) -> NDArray[np.uint16]:
    """Return the signatures [n, size] of n sets, set i of hashes[offsets[i]:offsets[i + 1]].

    Two sets share each of the `size` values with a probability that is their Jaccard similarity, and by chance with
    2^-16.
    """
    from rensa import RMinHash

    matrix = RMinHash.digest_matrix_from_flat_token_hashes(hashes, offsets.astype(np.uint64), size, seed)
    return np.array(matrix.to_rows(), np.uint32).astype(np.uint16)


class DistinctSets:
    """Sets of which no two are nearly equal, by MinHash with locality-sensitive hashing."""

    def __init__(self, threshold: float, *, size: int, num_bands: int, seed: int) -> None:
        """Keep no set whose Jaccard similarity to one that is kept is estimated at `threshold` or more."""
        from rensa import RMinHash, RMinHashDeduplicator

        self._minhash: Callable[[], Any] = lambda: RMinHash(size, seed)
        self._seen: Any = RMinHashDeduplicator(threshold, size, True, num_bands, seed)
        self._count = 0

    def add(self, members: Sequence[str]) -> bool:
        """Take a set. Return False, without keeping it, if it is nearly equal to one that is kept."""
        minhash = self._minhash()
        minhash.update(members)
        self._count += 1
        return bool(self._seen.add(str(self._count), minhash))
