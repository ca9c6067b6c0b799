"""Batches of several weighted sources: their shares, repeats, and independence of everything but step and seed."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from orchestrator.data.mixture import WeightedOrder, most_rows


def source_counts(sizes: list[int], batch: np.ndarray) -> list[int]:
    """Return how many rows of each source are in a batch."""
    ends = np.cumsum(sizes)
    return [int(((batch >= end - size) & (batch < end)).sum()) for end, size in zip(ends, sizes, strict=True)]


def test_every_batch_has_its_share_rounded() -> None:
    sizes = [100, 50]
    order = WeightedOrder(sizes, [0.7, 0.3], batch_size=8, seed=0)
    counts = [source_counts(sizes, order.rows(step)) for step in range(10)]
    # 5.6 and 2.4 of 8: the tenths owed to the sources are 6 and 4, then 2 and 8, 8 and 2, 4 and 6, 0 and 0.
    assert counts == [[6, 2], [5, 3], [6, 2], [5, 3], [6, 2]] * 2
    assert np.sum(counts, axis=0).tolist() == [56, 24]


def test_a_share_that_is_whole_is_the_same_in_every_batch() -> None:
    order = WeightedOrder([9, 9, 9], [0.3, 0.3, 0.4], batch_size=10, seed=3)
    assert {tuple(source_counts([9, 9, 9], order.rows(step))) for step in range(30)} == {(3, 3, 4)}


def test_a_small_source_is_repeated_and_a_large_one_is_not() -> None:
    order = WeightedOrder([4, 1000], [0.5, 0.5], batch_size=8, seed=0)
    rows = np.concatenate([order.rows(step) for step in range(20)])
    assert [int((rows == row).sum()) for row in range(4)] == [20] * 4, "all 4 rows are in every batch"
    large = rows[rows >= 4]
    assert len(set(large.tolist())) == len(large) == 80


def test_another_seed_is_another_order() -> None:
    first, other = (WeightedOrder([50, 50], [0.5, 0.5], batch_size=10, seed=seed).rows(0) for seed in (0, 1))
    assert sorted(first) != sorted(other)


@pytest.mark.parametrize(("share", "size", "most"), [(0.3, 10, 3), (0.7, 8, 6), (0.1, 3, 1), (1.0, 7, 7)])
def test_most_rows_of_a_batch(share: float, size: int, most: int) -> None:
    assert most_rows(share, size) == most


MIXTURES = st.lists(st.floats(0.05, 20), min_size=1, max_size=5).map(lambda w: [x / sum(w) for x in w])


@settings(max_examples=60, deadline=None)
@given(shares=MIXTURES, batch_size=st.integers(1, 24), seed=st.integers(0, 99), data=st.data())
def test_shares_hold_and_no_batch_has_a_row_twice(
    shares: list[float], batch_size: int, seed: int, data: st.DataObject
) -> None:
    sizes = [most_rows(share, batch_size) + data.draw(st.integers(0, 20)) for share in shares]
    sizes = [max(1, size) for size in sizes]
    order = WeightedOrder(sizes, shares, batch_size=batch_size, seed=seed)
    steps = 40
    batches = [order.rows(step) for step in range(steps)]
    for batch in batches:
        assert len(set(batch.tolist())) == len(batch) == batch_size
        assert all(0 <= row < sum(sizes) for row in batch)
    taken = np.cumsum([source_counts(sizes, batch) for batch in batches], axis=0)
    owed = np.outer(np.arange(1, steps + 1) * batch_size, shares)
    assert np.abs(taken - owed).max() < len(shares)
    # A resumed run asks for later steps first, and a look at an earlier step changes nothing.
    again = WeightedOrder(sizes, shares, batch_size=batch_size, seed=seed)
    for step in data.draw(st.permutations(range(0, steps, 7))):
        assert again.rows(step).tolist() == batches[step].tolist()
