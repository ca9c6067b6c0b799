"""Find valid rows that are suspicious: repeated, contradicting one another, held out but also trained on.

Texts are compared by a 64-bit hash of what a reader sees: without surrounding white space, in Unicode's NFC form. One
comparison of a million rows takes 8 MB.
"""

from __future__ import annotations

import hashlib
import json
import math
from array import array
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from orchestrator.data.formats import as_read
from orchestrator.data.rows import SHOWN
from workers.types import Example, Prompt, Text

Keys: TypeAlias = NDArray[np.uint64]
Pairs: TypeAlias = NDArray[np.int64]
"""Indices [P, 2] of two rows each: the later one, and the earlier one that it repeats or contradicts."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Claims:
    """Claims that one completion is better than another, each with its opposite, in the order of the rows.

    Example: the second row says the opposite of the first: `Claims(rows=[0, 1], claims=[5, 7], opposites=[7, 5])`.
    """

    rows: NDArray[np.int64]  # [C] index of the row
    claims: Keys  # [C] hashes
    opposites: Keys  # [C] hash of the claim that would be the opposite


@dataclass(frozen=True, kw_only=True, slots=True)
class RowKeys:
    """Hashes of the texts of rows, with their scores. Example: one pair: `RowKeys(prompts=[8], completions=[3, 9],
    offsets=[0, 2], scores=[1.0, 0.0])`."""

    prompts: Keys  # [n]
    completions: Keys  # [T] of all rows, one after the other
    offsets: NDArray[np.int64]  # [n + 1] row i owns completions offsets[i]:offsets[i + 1]
    scores: NDArray[np.float64]  # [T]; NaN: a demonstration, which has none

    @classmethod
    def of(cls, examples: Iterable[Example]) -> RowKeys:
        builder = KeyBuilder()
        for example in examples:
            builder.add(example)
        return builder.build()

    @property
    def sizes(self) -> NDArray[np.int64]:  # [n] completions of each row
        return np.diff(self.offsets)

    def rows(self) -> Keys:
        """Return a hash [n] of prompt, completions and scores of each row."""
        if not len(self.prompts):
            return self.prompts
        place = np.arange(len(self.completions)) - np.repeat(self.offsets[:-1], self.sizes)
        scores = self.scores.astype(np.float64).view(np.uint64)
        each = mixed(self.completions, scores, place.astype(np.uint64))
        return mixed(self.prompts, np.add.reduceat(each, self.offsets[:-1]), self.sizes.astype(np.uint64))

    def claims(self) -> Claims:
        """Return the claims of all rows: of a pair one, of a label one, of k scored completions up to k(k − 1)/2."""
        rows, claims, opposites = [], [], []
        single = np.flatnonzero((self.sizes == 1) & ~np.isnan(self.scores[self.offsets[:-1]]))
        label = (self.scores[self.offsets[single]] > 0).astype(np.uint64)
        text = self.prompts[single], self.completions[self.offsets[single]]
        rows.append(single)
        claims.append(mixed(*text, label))
        opposites.append(mixed(*text, 1 - label))
        for a, b in combinations(range(int(self.sizes.max(initial=0))), 2):
            several = np.flatnonzero(self.sizes > b)
            first, second = self.offsets[several] + a, self.offsets[several] + b
            decided = self.scores[first] > self.scores[second]
            several, first, second = several[decided], first[decided], second[decided]
            prompt, better, worse = self.prompts[several], self.completions[first], self.completions[second]
            rows.append(several)
            claims.append(mixed(prompt, better, worse))
            opposites.append(mixed(prompt, worse, better))
        order = np.argsort(np.concatenate(rows), kind="stable")
        return Claims(
            rows=np.concatenate(rows)[order],
            claims=np.concatenate(claims)[order],
            opposites=np.concatenate(opposites)[order],
        )


class KeyBuilder:
    """Builder of `RowKeys` from one row after the other, in 24 bytes a row and 16 a completion."""

    def __init__(self) -> None:
        self._prompts, self._completions = array("Q"), array("Q")
        self._offsets, self._scores = array("q", [0]), array("d")

    def add(self, example: Example) -> None:
        self._prompts.append(text_key(example.prompt.text))
        self._completions.extend(map(text_key, example.completions))
        self._scores.extend(example.scores or [math.nan] * len(example.completions))
        self._offsets.append(len(self._completions))

    def build(self) -> RowKeys:
        return RowKeys(
            prompts=np.frombuffer(self._prompts, np.uint64) if self._prompts else np.zeros(0, np.uint64),
            completions=np.frombuffer(self._completions, np.uint64) if self._completions else np.zeros(0, np.uint64),
            offsets=np.frombuffer(self._offsets, np.int64),
            scores=np.frombuffer(self._scores, np.float64) if self._scores else np.zeros(0, np.float64),
        )


def repeats(keys: Keys) -> Pairs:
    """Return the indices [R, 2] (later, first) of keys that an earlier one equals, in the order of the later ones."""
    _, first, inverse = np.unique(keys, return_index=True, return_inverse=True)
    earliest = first[inverse]
    later = np.flatnonzero(earliest != np.arange(len(keys)))
    return np.stack([later, earliest[later]], 1)


def disputes(claims: Claims) -> Pairs:
    """Return the rows [D, 2] (later, first) of claims whose opposite an earlier row claims, in the order of claims."""
    if not len(claims.claims):
        return np.zeros((0, 2), np.int64)
    known, first = np.unique(claims.claims, return_index=True)
    at = np.minimum(np.searchsorted(known, claims.opposites), len(known) - 1)
    other = claims.rows[first[at]]
    disputed = (known[at] == claims.opposites) & (other < claims.rows)
    return np.stack([claims.rows[disputed], other[disputed]], 1)


def repeated(keys: RowKeys) -> list[tuple[int, int]]:
    """Return the indices (row, earlier row) of rows with the same prompt, completions and scores."""
    return _tuples(repeats(keys.rows()))


def contradicting(keys: RowKeys) -> list[tuple[int, int]]:
    """Return the indices (row, earlier row) of rows that claim the opposite: a > b and b > a, or true and false."""
    return _tuples(disputes(keys.claims()))


def comparisons(examples: Sequence[Example], *, voter: str | None = None) -> dict[int, tuple[int, int]]:
    """Count, for each pair of completions, how many rows prefer the first and how many the second.

    A row that repeats another counts once. With `voter`, the name of a column, each distinct value of it has one vote.
    """
    votes: dict[int, tuple[set[object], set[object]]] = {}
    found = RowKeys.of(examples).claims()
    for row, claim, opposite in zip(found.rows, found.claims.tolist(), found.opposites.tolist(), strict=True):
        name = None if voter is None else str(examples[row].prompt.columns.get(voter))
        votes.setdefault(min(claim, opposite), (set(), set()))[claim > opposite].add(name)
    return {key: (len(first), len(second)) for key, (first, second) in votes.items()}


def distinct_prompts(prompts: Sequence[Prompt]) -> int:
    return len(np.unique(prompt_keys(prompts)))


def prompt_keys(prompts: Iterable[Prompt]) -> Keys:
    return np.fromiter((text_key(prompt.text) for prompt in prompts), np.uint64)


def trained_on(held_out: Keys, trained: Iterable[Keys]) -> list[int]:
    """Return the indices of held-out prompts that are also trained on, given the keys of both, the latter in parts."""
    known = np.unique(held_out)
    found = np.zeros(len(known), bool)
    for part in trained:
        found |= np.isin(known, part)
    return [int(i) for i in np.flatnonzero(np.isin(held_out, known[found]))]


def row_number(prompt: Prompt) -> int:
    """Return the row number of a prompt: 3 for the id "pairs.jsonl:3"."""
    return int(prompt.id.rpartition(":")[2])


def listed(rows: Sequence[Prompt], count: int | None = None) -> str:
    """Return a list of row numbers as text: "rows 3, 5, 9 and 4 more". `count`: of the rows; None: all are given."""
    count = len(rows) if count is None else count
    shown = ", ".join(str(row_number(row)) for row in rows[:SHOWN])
    more = f" and {count - SHOWN} more" if count > SHOWN else ""
    return f"row{'s' * (count > 1)} {shown}{more}"


def listed_pairs(pairs: Sequence[tuple[int, int]], examples: Sequence[Example]) -> str:
    """Return pairs of row numbers as text: "rows 3 and 1, 7 and 5, and 4 more"."""
    shown = [" and ".join(str(row_number(examples[i].prompt)) for i in pair) for pair in pairs[:SHOWN]]
    more = [f"and {len(pairs) - SHOWN} more"] if len(pairs) > SHOWN else []
    return "rows " + ", ".join(shown + more)


def text_key(text: Text) -> int:
    """Return a 64-bit hash of what a reader sees of a text."""
    read = as_read(text)
    if isinstance(text, str):
        written = b"s" + str(read[0]).encode("utf-8", "surrogatepass")
    else:
        written = json.dumps(read, sort_keys=True, default=str).encode()
    return int.from_bytes(hashlib.blake2b(written, digest_size=8).digest(), "little")


def mixed(*keys: Keys) -> Keys:
    """Combine arrays of equal length into hashes of their elements, in which the order counts."""
    result = np.zeros(len(keys[0]), np.uint64)
    for key in keys:  # splitmix64 of each
        result = (result ^ key) * np.uint64(0x9E3779B97F4A7C15) + np.uint64(0x632BE59BD9B4E019)
        result = (result ^ (result >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        result = (result ^ (result >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        result = result ^ (result >> np.uint64(31))
    return result


def _tuples(pairs: Pairs) -> list[tuple[int, int]]:
    return [(int(later), int(first)) for later, first in pairs]
