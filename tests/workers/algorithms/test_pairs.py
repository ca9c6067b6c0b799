from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from workers.algorithms.pairs import Pairs, best_with_worst


def pair(scores: list[list[float]], pairs_per_prompt: int = 1, min_margin: float = 0.0, seed: int = 0) -> Pairs:
    return best_with_worst(
        np.array([score for group in scores for score in group], np.float32),
        np.cumsum([0, *(len(group) for group in scores)]),
        pairs_per_prompt=pairs_per_prompt,
        min_margin=min_margin,
        seed=seed,
    )


def as_tuples(pairs: Pairs) -> list[tuple[int, int, float]]:
    return list(zip(pairs.chosen.tolist(), pairs.rejected.tolist(), pairs.margins.tolist(), strict=True))


def test_best_with_worst_of_each_group() -> None:
    assert as_tuples(pair([[2, 9, 5], [4, 1]])) == [(1, 0, 7), (3, 4, 3)]


def test_second_best_with_second_worst() -> None:
    # From best to worst: 3 (8), 1 (6), 2 (3), 4 (2), 0 (1). The middle one is left over.
    assert as_tuples(pair([[1, 6, 3, 8, 2]], pairs_per_prompt=4)) == [(3, 0, 7), (1, 4, 4)]


def test_pairs_per_prompt_is_the_limit() -> None:
    assert as_tuples(pair([[0, 1, 2, 3, 4, 5]], pairs_per_prompt=2)) == [(5, 0, 5), (4, 1, 3)]


def test_the_margin_must_exceed_min_margin() -> None:
    assert as_tuples(pair([[0, 2], [0, 3]], min_margin=2)) == [(3, 2, 3)]


def test_equal_scores_make_no_pair() -> None:
    pairs = pair([[1, 1, 1], [0, 0]], pairs_per_prompt=2)
    assert len(pairs) == 0
    assert pairs.chosen.dtype.kind == "i"


def test_small_groups_make_no_pair() -> None:
    assert as_tuples(pair([[1], [], [0, 1]])) == [(2, 1, 1)]
    assert as_tuples(pair([])) == []


def test_a_dataset_pair_stays_as_it_is() -> None:
    assert as_tuples(pair([[1, 0], [0.25, 0]], pairs_per_prompt=4)) == [(0, 1, 1), (2, 3, 0.25)]


def test_the_seed_decides_between_equal_scores() -> None:
    scores = [[1.0] * 8 + [0.0] * 8]
    assert as_tuples(pair(scores, seed=1)) == as_tuples(pair(scores, seed=1))
    drawn = {as_tuples(pair(scores, seed=seed))[0] for seed in range(50)}
    assert len({chosen for chosen, _, _ in drawn}) == 8
    assert {margin for _, _, margin in drawn} == {1.0}


def test_scores_must_be_finite() -> None:
    with pytest.raises(AssertionError, match="finite"):
        pair([[1, float("nan")]])


groups = st.lists(st.lists(st.integers(-3, 3).map(float), max_size=7), max_size=5)


@given(
    scores=groups,
    limit=st.integers(1, 5),
    min_margin=st.sampled_from([0.0, 1.0, 2.5]),
    seed=st.integers(0, 9),
)
def test_what_holds_for_all_pairs(scores: list[list[float]], limit: int, min_margin: float, seed: int) -> None:
    pairs = pair(scores, limit, min_margin, seed)
    flat = [score for group in scores for score in group]
    group_of = [g for g, group in enumerate(scores) for _ in group]
    used = [*pairs.chosen.tolist(), *pairs.rejected.tolist()]
    assert len(used) == len(set(used))  # disjoint
    for chosen, rejected, margin in as_tuples(pairs):
        assert group_of[chosen] == group_of[rejected]
        assert flat[chosen] - flat[rejected] == margin > min_margin
    for g, group in enumerate(scores):
        ranked = sorted(group)
        possible = [high - low for low, high in zip(ranked, ranked[::-1], strict=True)][: len(group) // 2]
        expected = [margin for margin in possible[:limit] if margin > min_margin]
        assert [m for c, _, m in as_tuples(pairs) if group_of[c] == g] == expected
