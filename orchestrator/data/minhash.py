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


FILTER_BYTES = 2**24  # of the filter that most sets of a million pass without a look at the others


class DistinctSets:
    """Sets of which no two are nearly equal, by MinHash with locality-sensitive hashing.

    Each set that is kept takes two bytes for each value of its signature and eight for each band.
    """

    def __init__(self, threshold: float, *, size: int, num_bands: int, seed: int) -> None:
        """Keep no set whose Jaccard similarity to one that is kept is estimated at `threshold` or more.

        Sets are compared if one of their `num_bands` bands, equal parts of a signature of `size` values, is equal.
        """
        from rensa import RMinHash

        assert size % num_bands == 0
        self._minhash: Callable[[], Any] = lambda: RMinHash(size, seed)
        self._threshold, self._count = threshold, 0
        self._signatures = np.zeros((1024, size), np.uint16)
        self._keys = np.zeros((num_bands, 1024), np.uint64)
        self._filter = np.zeros(FILTER_BYTES, np.uint8)
        draw = np.random.Generator(np.random.Philox(seed))
        self._factors = draw.integers(0, 2**63, (num_bands, size // num_bands), np.uint64) * 2 + 1

    def add(self, members: Sequence[str]) -> bool:
        """Take a set. Return False, without keeping it, if it is nearly equal to one that is kept."""
        minhash = self._minhash()
        minhash.update(members)
        signature = np.array(minhash.digest(), np.uint32).astype(np.uint16)
        keys = (signature.reshape(self._factors.shape) * self._factors).sum(1, dtype=np.uint64)
        bytes_of, masks = self._places(keys)
        for band in np.flatnonzero(self._filter[bytes_of] & masks):
            alike = np.flatnonzero(self._keys[band, : self._count] == keys[band])
            if len(alike) and (self._signatures[alike] == signature).mean(1).max() >= self._threshold:
                return False
        np.bitwise_or.at(self._filter, bytes_of, masks)
        self._keep(signature, keys)
        return True

    def _places(self, keys: NDArray[np.uint64]) -> tuple[NDArray[np.int64], NDArray[np.uint8]]:
        """Return the byte and the bit of each key in the filter. Bits of a product are mixed best at its upper end."""
        bits = (keys >> np.uint64(64 - (8 * FILTER_BYTES - 1).bit_length())).astype(np.int64)
        return bits >> 3, (1 << (bits & 7)).astype(np.uint8)

    def _keep(self, signature: NDArray[np.uint16], keys: NDArray[np.uint64]) -> None:
        if self._count == len(self._signatures):
            self._signatures = np.concatenate([self._signatures, np.zeros_like(self._signatures)])
            self._keys = np.concatenate([self._keys, np.zeros_like(self._keys)], axis=1)
        self._signatures[self._count], self._keys[:, self._count] = signature, keys
        self._count += 1
