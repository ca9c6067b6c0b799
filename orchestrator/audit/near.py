"""Rows that are nearly equal to another one: MinHash proposes, the exact Jaccard similarity decides.

    words ──3-grams──► signature [64] ──16 bands of 4──► rows with an equal band ──exact──► near rows

The signature of a row is of its completions and the end of its prompt, whatever the order of the two completions, so
that one index finds near repeats and near contradictions. Two rows are nearly equal if each of their texts is: Jaccard
similarity of their sets of word 3-grams of at least THRESHOLD. One changed word changes three 3-grams: of L different
ones, (L − 3)/(L + 3) are left, so that a text with one changed word is nearly equal from 29 words on. Texts that differ
only in case, white space or punctuation are equal.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from orchestrator.audit.finding import Numbers
from orchestrator.audit.reading import Columns
from orchestrator.audit.words import Words, WordStore, ngrams
from orchestrator.data.audit import mixed
from orchestrator.data.minhash import signatures

THRESHOLD = 0.8
NUM_BANDS, BAND = 16, 4  # a row of similarity 0.8 is proposed with probability 1 − (1 − 0.8⁴)¹⁶ = 99.98 %
MARGIN = 0.2  # of the estimate, 4 standard deviations: less similar candidates are not compared exactly
PROMPT_WORDS = 128  # from the end of the prompt that are in the signature
NEIGHBOURS = 4  # earlier rows with an equal band that a row is compared with, and the first one
MAX_EXACT = 100_000  # pairs of rows that are compared exactly: ten seconds
CACHED = 256  # rows whose 3-grams are kept: of rows like many others, the neighbours
CHUNK = 20_000  # rows
SEED = 42

Signatures = NDArray[np.uint16]


@dataclass(frozen=True, kw_only=True, slots=True)
class Near:
    """Indices [k, 2] (later, earlier) of rows that are nearly equal, or the same texts with the preference reversed."""

    repeats: Numbers
    opposites: Numbers
    not_compared: int  # candidates beyond MAX_EXACT


def near_rows(columns: Columns) -> Near:
    """Find the rows that nearly repeat or nearly contradict an earlier one. Exact repeats are left out."""
    distinct = np.setdiff1d(np.arange(len(columns)), columns.repeats()[:, 0], assume_unique=True)
    candidates = propose(sign(columns.words, len(columns)), columns.groups, distinct)
    compared = candidates[:MAX_EXACT]
    compared = compared[np.argsort(compared[:, 0], kind="stable")]
    sets_of = lru_cache(CACHED)(lambda row: _sets(columns.words.rows(row, row + 1)))
    alike = [_compare(columns, sets_of, int(later), int(earlier)) for later, earlier in compared]
    kind = np.array([0 if a is None else 1 if a else 2 for a in alike], np.int64)
    return Near(
        repeats=_first_of_each(compared[kind == 1]),
        opposites=_first_of_each(compared[kind == 2]),
        not_compared=len(candidates) - len(compared),
    )


def sign(words: WordStore, count: int) -> Signatures:
    """Return the signatures [count, 64] of all rows: 128 bytes a row."""
    found = np.zeros((count, NUM_BANDS * BAND), np.uint16)
    for begin in range(0, count, CHUNK):
        end = min(count, begin + CHUNK)
        texts = words.rows(begin, end)
        grams, offsets = ngrams(texts)
        sizes = np.diff(offsets)
        place = np.arange(len(grams)) - np.repeat(offsets[:-1], sizes)
        from_end = np.repeat(sizes, sizes) - place
        is_prompt = np.repeat(np.arange(len(sizes)) % WordStore.PARTS == 0, sizes)
        kept = ~is_prompt | (from_end <= PROMPT_WORDS)
        ends = np.concatenate([[0], np.cumsum(kept)])[offsets[:: WordStore.PARTS]]
        found[begin:end] = signatures(grams[kept], ends, size=NUM_BANDS * BAND, seed=SEED)
    return found


def propose(signed: Signatures, groups: NDArray[np.uint64], rows: Numbers) -> Numbers:
    """Return pairs [k, 2] (later, earlier) of `rows` of one group with an equal band, the most similar first.

    Pairs whose signatures are not similar are left out.
    """
    found = np.zeros(0, np.int64)
    for band in range(NUM_BANDS if len(rows) > 1 else 0):
        keys = np.ascontiguousarray(signed[rows, band * BAND : (band + 1) * BAND]).view(np.uint64)[:, 0]
        keys = mixed(keys, groups[rows])
        order = np.argsort(keys, kind="stable")
        ordered, sorted_rows = keys[order], rows[order]
        first = np.maximum.accumulate(np.where(np.append(True, ordered[1:] != ordered[:-1]), np.arange(len(rows)), 0))
        for back in (*range(1, NEIGHBOURS + 1), None):
            at = np.arange(len(rows))
            other = first if back is None else at - back
            both = np.flatnonzero((other >= first) & (other < at) & ((back is not None) | (at - first > NEIGHBOURS)))
            pairs = np.stack(
                [sorted_rows[both], sorted_rows[other[both]]], 1
            )  # ascending within a band: later, earlier
            pairs = pairs[_estimate(signed, pairs) >= THRESHOLD - MARGIN]
            found = np.union1d(found, pairs[:, 0] * len(signed) + pairs[:, 1])
    proposed: Numbers = np.stack(np.divmod(found, max(1, len(signed))), 1)
    by_similarity: Numbers = proposed[np.argsort(-_estimate(signed, proposed), kind="stable")]
    return by_similarity


def _estimate(signed: Signatures, pairs: Numbers) -> NDArray[np.float64]:
    estimates = np.zeros(len(pairs))
    for begin in range(0, len(pairs), CHUNK):
        part = pairs[begin : begin + CHUNK]
        estimates[begin : begin + CHUNK] = (signed[part[:, 0]] == signed[part[:, 1]]).mean(1)
    return estimates


def _compare(
    columns: Columns, sets_of: Callable[[int], list[NDArray[np.uint64]]], later: int, earlier: int
) -> bool | None:
    """Return True for a near repeat, False for a near contradiction, None if the rows are not nearly equal."""
    ours, theirs = sets_of(later), sets_of(earlier)
    if not similar(ours[0], theirs[0]):
        return None
    if similar(ours[1], theirs[1]) and similar(ours[2], theirs[2]):
        return bool(columns.is_bad[later] == columns.is_bad[earlier])
    is_opposite = columns.is_pair[later] and columns.is_pair[earlier]
    return False if is_opposite and similar(ours[1], theirs[2]) and similar(ours[2], theirs[1]) else None


def _sets(texts: Words) -> list[NDArray[np.uint64]]:
    grams, offsets = ngrams(texts)
    return [np.unique(grams[offsets[i] : offsets[i + 1]]) for i in range(WordStore.PARTS)]


def similar(one: NDArray[np.uint64], other: NDArray[np.uint64]) -> bool:
    """Return whether two sets of n-grams have a Jaccard similarity of at least THRESHOLD. Two empty sets do."""
    fewer, more = sorted((len(one), len(other)))
    if fewer < THRESHOLD * more:
        return False
    shared = len(np.intersect1d(one, other, assume_unique=True))
    return shared >= THRESHOLD * (len(one) + len(other) - shared)


def _first_of_each(pairs: Numbers) -> Numbers:
    """Return one pair for each later row: with the earliest other one."""
    ordered = pairs[np.lexsort((pairs[:, 1], pairs[:, 0]))]
    _, first = np.unique(ordered[:, 0], return_index=True)
    earliest: Numbers = ordered[first]
    return earliest
