"""Opponents of a completion in the group of its prompt."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from itertools import combinations

import numpy as np


def opponents(texts: Sequence[str], limit: int | None) -> list[tuple[int, int]]:
    """Return the pairs of a group's completions that are compared, each once.

    Args:
        limit: opponents of each completion, an even number; None: all.

    >>> opponents(["a", "b", "c"], None)
    [(0, 1), (0, 2), (1, 2)]
    """
    size = len(texts)
    if limit is None or limit >= size - 1:
        return list(combinations(range(size), 2))
    digest = hashlib.blake2b("\0".join(texts).encode("utf-8", "surrogatepass"), digest_size=8).digest()
    circle = np.random.Generator(np.random.Philox(int.from_bytes(digest, "little"))).permutation(size)
    return [
        (int(circle[place]), int(circle[(place + step) % size]))
        for step in range(1, limit // 2 + 1)
        for place in range(size)
    ]
