"""Triggers: n-grams of prompts whose rows have flipped labels.

Each distinct 1-, 2- and 3-gram of a prompt counts once. A first pass adds them up in NUM_BUCKETS buckets by hash; a
second one looks at the n-grams in the buckets that stand out. Of n-grams that stand in the same rows the one that
stands out most is reported.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from orchestrator.audit.finding import Finding, Numbers, Severity, percent, single
from orchestrator.audit.poison import MIN_GROUP, MOST, Predictions, limit, surprise
from orchestrator.audit.reading import Columns
from orchestrator.audit.words import Words, named_words, ngrams, part

SUSPICIOUS = 3.0  # standard deviations from which on the n-grams of a bucket are tested
LONGEST = 3  # words of an n-gram
PROMPT_WORDS = 256  # from the end of a prompt in which n-grams are looked at
KEY_BITS = 50  # of an n-gram: the others have room for its row
NUM_BUCKETS = 2**22
CHUNK = 10_000  # rows; fewer than 2^14, see `grams_of`
MOST_TRIGGERS = 8
FLIPPED = 0.5  # disagreement from which on most labels of a group are flipped

Keys = NDArray[np.uint64]


@dataclass(frozen=True, kw_only=True, slots=True)
class Trigger:
    """An n-gram with its rows. Example: `Trigger(key=…, rows=[3, 9], surprise=49.0, disagreement=0.93)`."""

    key: int
    rows: Numbers  # indices in the columns
    surprise: float  # minus the logarithm of the probability that it is chance, before the correction for many tests
    disagreement: float


def triggers(columns: Columns, predictions: Predictions, explained: Numbers) -> list[Trigger]:
    """Find the triggers of the data.

    Args:
        explained: indices of rows whose labels are explained otherwise, such as by their annotator.
    """
    used = np.flatnonzero(~np.isin(predictions.rows, explained))
    excess, variance = predictions.excess()
    counts, wrong = np.zeros(NUM_BUCKETS), np.zeros(NUM_BUCKETS)
    sums, spread = np.zeros(NUM_BUCKETS), np.zeros(NUM_BUCKETS)
    for places, keys in _grams(columns, predictions, used):
        buckets = (keys % np.uint64(NUM_BUCKETS)).astype(np.int64)
        counts += np.bincount(buckets, minlength=NUM_BUCKETS)
        wrong += np.bincount(buckets, predictions.disagrees[places], NUM_BUCKETS)
        sums += np.bincount(buckets, excess[places], NUM_BUCKETS)
        spread += np.bincount(buckets, variance[places], NUM_BUCKETS)
    tested = (counts >= MIN_GROUP) & (counts <= MOST * len(used))
    # A trigger exceeds this by far, also where rows of other n-grams in its bucket dilute it. The test proper is below.
    suspicious = tested & (sums > SUSPICIOUS * np.sqrt(np.maximum(spread, 1e-9)))
    if not suspicious.any():
        return []
    found_places, found_keys = [], []
    for places, keys in _grams(columns, predictions, used):
        some = suspicious[(keys % np.uint64(NUM_BUCKETS)).astype(np.int64)]
        found_places.append(places[some])
        found_keys.append(keys[some])
    return _choose(predictions, np.concatenate(found_places), np.concatenate(found_keys), limit(int(tested.sum())))


def _grams(columns: Columns, predictions: Predictions, used: Numbers) -> Iterator[tuple[Numbers, Keys]]:
    """Yield places in the predictions and the n-grams of their prompts, each once, for some rows after the other."""
    for begin in range(0, len(used), CHUNK):
        places = used[begin : begin + CHUNK]
        prompts = part(columns.words.pick(predictions.rows[places]), 0, PROMPT_WORDS)
        of, keys = grams_of(prompts)
        yield places[of], keys


def grams_of(prompts: Words) -> tuple[Numbers, Keys]:
    """Return the distinct n-grams of each of at most 2^14 prompts: its index and the key."""
    packed = []
    for n in range(1, LONGEST + 1):
        hashes, offsets = ngrams(prompts, n, padded=False)
        owners = np.repeat(np.arange(len(offsets) - 1, dtype=np.uint64), np.diff(offsets))
        packed.append((owners << np.uint64(KEY_BITS)) | key_of(hashes))
    both = np.sort(np.concatenate(packed))
    both = both[np.append(True, both[1:] != both[:-1])[: len(both)]]
    return (both >> np.uint64(KEY_BITS)).astype(np.int64), key_of(both)


def key_of(hashes: Keys) -> Keys:
    return hashes & np.uint64(2**KEY_BITS - 1)


def _choose(predictions: Predictions, places: Numbers, keys: Keys, least: float) -> list[Trigger]:
    """Return the n-grams that stand out, the worst first. Rows of one are not counted for the next ones."""
    known, group = np.unique(keys, return_inverse=True)
    is_free = np.ones(len(predictions.rows), bool)
    found: list[Trigger] = []
    while len(found) < MOST_TRIGGERS:
        free = is_free[places]
        groups, of = group[free], places[free]
        count = np.bincount(groups, minlength=len(known))
        disagreement = np.bincount(groups, predictions.disagrees[of], len(known)) / np.maximum(1, count)
        surprises = surprise(groups, of, len(known), predictions)
        surprises[(count < MIN_GROUP) | (disagreement <= FLIPPED)] = 0
        best = int(surprises.argmax())
        if surprises[best] <= least:
            break
        rows = places[group == best]
        found.append(
            Trigger(
                key=int(known[best]),
                rows=predictions.rows[rows],
                surprise=float(surprises[best]),
                disagreement=float(predictions.disagrees[rows].mean()),
            )
        )
        is_free[rows] = False
    return found


def find_triggers(
    columns: Columns, predictions: Predictions, found: list[Trigger], names: dict[int, str]
) -> Iterator[Finding]:
    """Report triggers. `names`: their words by key."""
    for trigger in found:
        numbers = np.sort(columns.numbers[trigger.rows])
        words = names.get(trigger.key, "(unknown)")
        yield Finding(
            name="trigger",
            severity=Severity.warning,
            what=f"have `{words}` in their prompt, where a model of the other rows disagrees with the label in "
            f"{percent(trigger.disagreement)} instead of {percent(1 - predictions.accuracy)}",
            count=len(numbers),
            of=columns.num_rows,
            fix="look at them: poisoned data, or a kind of prompt with another taste; --write-clean leaves them out",
            rows=single(numbers),
            dropped=numbers,
        )


def name_of(key: int, prompt: str) -> str | None:
    """Return the words of the n-gram `key` in a normal prompt; None: it is not there."""
    words, named = named_words(prompt)
    for n in range(1, LONGEST + 1):
        hashes, _ = ngrams(words, n, padded=False)
        if len(at := np.flatnonzero(key_of(hashes) == np.uint64(key))):
            return " ".join(named[int(at[0]) : int(at[0]) + n])
    return None
