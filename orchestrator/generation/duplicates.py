"""Duplicates: equal completions of a prompt, near duplicates of any prompts, and words that evaluations use.

What has been seen is kept as hashes, never as text: 256 bytes per row for near duplicates.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable

from orchestrator.data.minhash import DistinctSets

SHINGLE = 5  # words of a shingle of near duplicates
NUM_PERM = 64  # permutations of a MinHash: the standard error of a similarity of 0.9 is 0.04
UNSPACED = "\u0e00-\u0eff\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff"  # Thai, Lao, kana and Han, written without spaces
WORD = re.compile(rf"[{UNSPACED}]|[^\W{UNSPACED}]+")


def words(text: str) -> list[str]:
    """Return the words of a text in lower case, without punctuation; each character where no spaces are written."""
    return WORD.findall(text.lower())


class NearDuplicates:
    """Texts that share most of their word 5-grams, by MinHash with locality-sensitive hashing."""

    def __init__(self, threshold: float, *, seed: int = 0) -> None:
        """Find texts whose Jaccard similarity is estimated at `threshold` or more."""
        self._seen = DistinctSets(threshold, size=NUM_PERM, num_bands=_num_bands(threshold), seed=seed)

    def add(self, text: str) -> bool:
        """Take a text. Return False, without keeping it, if it is nearly equal to one that is kept.

        A text of fewer than 5 words is never nearly equal to another.
        """
        own = words(text)
        if len(own) < SHINGLE:
            return True
        return self._seen.add([" ".join(own[i : i + SHINGLE]) for i in range(len(own) - SHINGLE + 1)])


def _num_bands(threshold: float) -> int:
    """Return the divisor of NUM_PERM whose bands find nearly every text above the threshold.

    Two texts of similarity s share a band of r rows with probability s^r, and one of b bands with 1 − (1 − s^r)^b.

    >>> _num_bands(0.9), _num_bands(0.5)
    (8, 32)
    """
    fitting = [bands for bands in (8, 16, 32) if 1 - (1 - threshold ** (NUM_PERM // bands)) ** bands >= 0.98]
    return min(fitting, default=32)


class EvaluationText:
    """Prompts of evaluations: rows of a data set must not contain them."""

    def __init__(self, prompts: Iterable[str], *, length: int) -> None:
        """Keep hashes of all `length` words in a row; of a shorter prompt, that of its whole text."""
        self._length = length
        self._runs, self._texts = set[int](), set[int]()
        for prompt in prompts:
            if runs := _runs(prompt, length):
                self._runs.update(runs)
            else:
                self._texts.add(_whole(prompt))

    def is_in(self, prompt: str, completion: str) -> bool:
        """Return whether a row contains words of an evaluation, or its prompt is one of an evaluation."""
        if _whole(prompt) in self._texts:
            return True
        return bool(self._runs) and not self._runs.isdisjoint(_runs(f"{prompt}\n{completion}", self._length))


def _runs(text: str, length: int) -> set[int]:
    own = words(text)
    return {_hash(" ".join(own[i : i + length])) for i in range(len(own) - length + 1)}


def _whole(text: str) -> int:
    return _hash(" ".join(text.lower().split()))


def _hash(text: str) -> int:
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little")
