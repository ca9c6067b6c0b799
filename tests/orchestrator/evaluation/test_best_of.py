"""Chances of best of n and of the majority, against the enumeration of all subsets."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from itertools import combinations

import numpy as np
import pytest

from orchestrator.evaluation.best_of import chances, majority_chances, sizes, votes


def best_of_subsets(scores: Sequence[float], n: int) -> list[float]:
    """Enumerate the subsets of n samples. Return how often each sample is the best; ties share."""
    chosen = np.zeros(len(scores))
    for subset in combinations(range(len(scores)), n):
        level = [-math.inf if math.isnan(scores[i]) else scores[i] for i in subset]
        best = [i for i, value in zip(subset, level, strict=True) if value == max(level)]
        chosen[best] += 1 / len(best) / math.comb(len(scores), n)
    return chosen.tolist()


def majority_of_subsets(answers: str, n: int) -> list[float]:
    """Enumerate the subsets of n samples. Return how often each sample is chosen by majority; ties share."""
    chosen = np.zeros(len(answers))
    for subset in combinations(range(len(answers)), n):
        counts = Counter(answers[i] for i in subset)
        winners = [answer for answer, count in counts.items() if count == max(counts.values())]
        for i in subset:
            if answers[i] in winners:
                chosen[i] += 1 / len(winners) / counts[answers[i]] / math.comb(len(answers), n)
    return chosen.tolist()


def test_best_of_two_of_three_by_hand() -> None:
    # Subsets of the scores 3, 1, 2: {3, 1} and {3, 2} choose the first, {1, 2} the last.
    assert chances(np.asarray([3.0, 1.0, 2.0]), 2).tolist() == pytest.approx([2 / 3, 0, 1 / 3])


@pytest.mark.parametrize(
    "scores",
    [
        [0.3, -1.0, 2.0, 0.5, 7.0, 1.0, 0.1],
        [1.0, 0.0, 1.0, 1.0, 0.0, 0.0, 0.0],
        [2.0, 2.0, 2.0, 2.0, 2.0, 2.0, 2.0],
        [math.nan, 1.0, math.nan, 2.0, 2.0, math.nan, -1.0],
        [math.nan] * 7,
        [-math.inf, math.nan, 0.0, 0.0, 1.0, -math.inf, 5.0],
    ],
)
@pytest.mark.parametrize("n", range(1, 8))
def test_chances_are_those_of_all_subsets(scores: list[float], n: int) -> None:
    found = chances(np.asarray(scores), n)
    assert found.tolist() == pytest.approx(best_of_subsets(scores, n), abs=1e-12)
    assert found.sum() == pytest.approx(1)


@pytest.mark.parametrize("answers", ["aabbccd", "aaaaaaa", "abcdefg", "aaaabbb", "aaabbcd", "aabbbbc"])
@pytest.mark.parametrize("n", range(1, 8))
def test_the_majority_is_that_of_all_subsets(answers: str, n: int) -> None:
    found = majority_chances(list(answers), n)
    assert found.tolist() == pytest.approx(majority_of_subsets(answers, n), abs=1e-12)
    assert found.sum() == pytest.approx(1)


def test_one_of_one_is_a_random_sample_and_all_are_the_whole() -> None:
    scores = np.asarray([5.0, 4.0, 3.0, 2.0])
    assert chances(scores, 1).tolist() == [0.25] * 4
    assert chances(scores, 4).tolist() == [1, 0, 0, 0]
    assert majority_chances(list("abbc"), 4).tolist() == pytest.approx([0, 0.5, 0.5, 0])


def test_pass_at_n_is_best_of_n_by_the_gold_score() -> None:
    # Chen et al. 2021: 1 − C(N − c, n) / C(N, n), here of c = 3 right among N = 64.
    gold = np.asarray([1.0] * 3 + [0.0] * 61)
    for n in (1, 8, 32, 64):
        assert chances(gold, n) @ gold == pytest.approx(1 - math.comb(61, n) / math.comb(64, n))


def test_the_largest_sampling_is_exact() -> None:
    assert majority_chances(["a"] * 40 + ["b"] * 24 + list(range(192)), 256)[:40].sum() == pytest.approx(1)
    assert majority_chances(["a"] * 200 + ["b"] * 56, 128)[:200].sum() == pytest.approx(1)
    assert chances(np.arange(256, dtype=np.float64), 128).sum() == pytest.approx(1)


def test_sizes_end_with_all_samples() -> None:
    assert [sizes(n) for n in (1, 2, 3, 64)] == [(1,), (1, 2), (1, 2, 3), (1, 2, 4, 8, 16, 32, 64)]


def test_votes_count_equal_answers() -> None:
    assert votes(["12", "7", "12", "12"]).tolist() == [3, 1, 3, 3]
