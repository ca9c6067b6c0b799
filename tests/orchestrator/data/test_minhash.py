"""Sets of which no two are nearly equal: the decisions are those of a comparison with all sets, in little memory."""

from __future__ import annotations

import random

import numpy as np
import pytest
from rensa import RMinHash

from orchestrator.data import minhash
from orchestrator.data.minhash import DistinctSets

SIZE, BANDS, THRESHOLD = 64, 16, 0.7


def sets(seed: int, count: int) -> list[list[str]]:
    """Return sets of 60 members, of which every second one is changed from an earlier one in up to 20 members."""
    draw, made = random.Random(seed), list[list[str]]()
    for i in range(count):
        fresh = [f"{seed}-{i}-{j}" for j in range(60)]
        if i % 2 and made:
            old, changes = draw.choice(made), draw.randrange(20)
            fresh = fresh[:changes] + old[changes:]
        made.append(fresh)
    return made


def by_all_comparisons(given: list[list[str]]) -> list[bool]:
    """Return the decision on each set, comparing its signature with those of all sets that are kept."""
    kept, decisions = list[np.ndarray](), list[bool]()
    for members in given:
        own = RMinHash(SIZE, 3)
        own.update(members)
        signature = np.array(own.digest(), np.uint32).astype(np.uint16)
        bands = signature.reshape(BANDS, -1)
        near = any(
            (signature == other).mean() >= THRESHOLD and (bands == other.reshape(BANDS, -1)).all(1).any()
            for other in kept
        )
        decisions.append(not near)
        if not near:
            kept.append(signature)
    return decisions


@pytest.mark.parametrize("seed", range(3))
def test_decisions_are_those_of_all_comparisons(seed: int) -> None:
    given = sets(seed, 600)
    distinct = DistinctSets(THRESHOLD, size=SIZE, num_bands=BANDS, seed=3)
    found = [distinct.add(members) for members in given]
    assert found == by_all_comparisons(given)
    assert 350 < sum(found) < 550


def test_a_full_filter_changes_no_decision(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(minhash, "FILTER_BYTES", 64)  # full after a few sets
    given = sets(7, 300)
    distinct = DistinctSets(THRESHOLD, size=SIZE, num_bands=BANDS, seed=3)
    assert [distinct.add(members) for members in given] == by_all_comparisons(given)


def test_a_set_takes_few_bytes() -> None:
    distinct = DistinctSets(THRESHOLD, size=SIZE, num_bands=BANDS, seed=3)
    for i in range(3000):
        distinct.add([f"{i}-{j}" for j in range(8)])
    taken = sum(array.nbytes for array in vars(distinct).values() if isinstance(array, np.ndarray))
    assert taken - minhash.FILTER_BYTES < 3000 * 2 * (2 * SIZE + 8 * BANDS)  # arrays are doubled when they are full
