from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from workers.algorithms.pairs import SELECTIONS, Pairs


def pair(
    scores: list[list[float]],
    pairs_per_prompt: int = 1,
    min_margin: float = 0.0,
    seed: int = 0,
    selection: str = "best_worst",
) -> Pairs:
    return SELECTIONS[selection](
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


@pytest.mark.parametrize("selection", SELECTIONS)
def test_small_groups_make_no_pair(selection: str) -> None:
    assert as_tuples(pair([[1], [], [0, 1]], selection=selection)) == [(2, 1, 1)]
    assert as_tuples(pair([], selection=selection)) == []


@pytest.mark.parametrize("selection", SELECTIONS)
def test_a_dataset_pair_stays_as_it_is(selection: str) -> None:
    assert as_tuples(pair([[1, 0], [0.25, 0]], pairs_per_prompt=4, selection=selection)) == [(0, 1, 1), (2, 3, 0.25)]


def test_the_seed_decides_between_equal_scores() -> None:
    scores = [[1.0] * 8 + [0.0] * 8]
    assert as_tuples(pair(scores, seed=1)) == as_tuples(pair(scores, seed=1))
    drawn = {as_tuples(pair(scores, seed=seed))[0] for seed in range(50)}
    assert len({chosen for chosen, _, _ in drawn}) == 8
    assert {margin for _, _, margin in drawn} == {1.0}


@pytest.mark.parametrize("selection", SELECTIONS)
def test_scores_must_be_finite(selection: str) -> None:
    with pytest.raises(AssertionError, match="finite"):
        pair([[1, float("nan")]], selection=selection)


def test_all_pairs_of_a_group() -> None:
    # Of 4, 1, 4, 0 the pairs with a margin: 4 > 1 and 4 > 0 twice each, 1 > 0 once; 4 and 4 are equal.
    every = as_tuples(pair([[4, 1, 4, 0], [5, 6]], pairs_per_prompt=6, selection="all"))
    assert sorted(every[:5]) == [(0, 1, 3), (0, 3, 4), (1, 3, 1), (2, 1, 3), (2, 3, 4)]
    assert every[5:] == [(5, 4, 1)]
    assert len(pair([[4, 1, 4, 0]], pairs_per_prompt=6, min_margin=3, selection="all")) == 2  # those of 4 and 0


def test_all_pairs_are_equally_likely_to_be_drawn() -> None:
    drawn = [as_tuples(pair([[4, 1, 4, 0]], selection="all", seed=seed))[0] for seed in range(1000)]
    counts = [drawn.count(one) for one in set(drawn)]
    assert len(counts) == 5
    assert all(abs(count - 200) < 60 for count in counts)  # 200 each; standard deviation 12.6
    assert as_tuples(pair([[4, 1, 4, 0]], selection="all", seed=7)) == [drawn[7]]


def test_random_pairs_use_no_completion_twice() -> None:
    # A completion of 1 and one of 0, then the others: two pairs, whichever are drawn.
    for seed in range(20):
        pairs = as_tuples(pair([[1, 1, 0, 0]], pairs_per_prompt=4, selection="random", seed=seed))
        assert sorted(chosen for chosen, _, _ in pairs) == [0, 1]
        assert sorted(rejected for _, rejected, _ in pairs) == [2, 3]
    both = {tuple(sorted(as_tuples(pair([[1, 1, 0, 0]], 4, selection="random", seed=s)))) for s in range(20)}
    assert len(both) == 2


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


@given(
    scores=groups,
    limit=st.integers(1, 5),
    min_margin=st.sampled_from([0.0, 1.0, 2.5]),
    seed=st.integers(0, 9),
    selection=st.sampled_from(["all", "random"]),
)
def test_what_holds_for_drawn_pairs(
    scores: list[list[float]], limit: int, min_margin: float, seed: int, selection: str
) -> None:
    pairs = as_tuples(pair(scores, limit, min_margin, seed, selection))
    flat = [score for group in scores for score in group]
    group_of = [g for g, group in enumerate(scores) for _ in group]
    assert [group_of[chosen] for chosen, _, _ in pairs] == sorted(group_of[chosen] for chosen, _, _ in pairs)
    assert len({(chosen, rejected) for chosen, rejected, _ in pairs}) == len(pairs)
    for chosen, rejected, margin in pairs:
        assert group_of[chosen] == group_of[rejected]
        assert flat[chosen] - flat[rejected] == margin > min_margin
    for g, group in enumerate(scores):
        found = [(c, r) for c, r, _ in pairs if group_of[c] == g]
        possible = sum(a - b > min_margin for a in group for b in group)
        if selection == "all":
            assert len(found) == min(limit, possible)
        else:
            used = [i for one in found for i in one]
            assert len(used) == len(set(used))
            assert bool(found) == bool(possible)
            assert len(found) <= limit
            left = [x for i, x in enumerate(flat) if group_of[i] == g and i not in used]
            assert len(found) == limit or all(a - b <= min_margin for a in left for b in left)
