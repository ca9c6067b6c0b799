"""Statistics: estimates against values computed by hand, and the coverage of intervals by simulation."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest

from orchestrator.evaluation.statistics import (
    Curve,
    Interval,
    bootstrap,
    difference_at,
    length_controlled_win_rate,
    mean,
    wilson,
)


def array(*values: float) -> np.ndarray:
    return np.asarray(values, np.float64)


# ------------------------------------------------------------------------------------------------ by hand


def test_the_bootstrap_of_two_prompts_by_hand() -> None:
    # Two prompts, 0 and 1. Samples of two: both 0 (¼), one of each (½), both 1 (¼). 95 % include all of them.
    assert mean(array(0, 1), seed=0) == Interval(value=0.5, low=0.0, high=1.0)
    # The middle 40 % (from 30 % to 70 %) contain only ½.
    assert mean(array(0, 1), seed=0, confidence=0.4) == Interval(value=0.5, low=0.5, high=0.5)


def test_the_same_seed_draws_the_same() -> None:
    values = np.random.default_rng(0).normal(size=50)
    assert mean(values, seed=3) == mean(values, seed=3) != mean(values, seed=4)


def test_drawing_in_chunks_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    # 50 prompts: 200 cells allow 4 draws at a time; the stream of draws is the same.
    values = np.random.default_rng(0).normal(size=50)
    at_once = mean(values, seed=3)
    monkeypatch.setattr("orchestrator.evaluation.statistics.MAX_CELLS", 200)
    assert mean(values, seed=3) == at_once


def test_wilson_by_hand() -> None:
    # 5 of 10 at z = 1.96: centre ½, half 1.96 √(0.025 + 3.8415/400) / 1.38415 = 0.2634.
    found = wilson(5, 10)
    assert (found.value, found.low, found.high) == pytest.approx((0.5, 0.2366, 0.7634), abs=1e-4)
    # 0 of 10: the low end is 0 and the high end z² / (n + z²) = 3.8415 / 13.8415.
    none = wilson(0, 10)
    assert (none.low, none.high) == pytest.approx((0.0, 3.8415 / 13.8415), abs=1e-4)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: wilson(3, 0), "not a proportion"),
        (lambda: wilson(3, 2), "not a proportion"),
        (lambda: mean(array(1), seed=0), "at least two"),
        (lambda: length_controlled_win_rate(array(1, 2), array(3, 4), array(4, 3), seed=0), "between 0"),
        (lambda: Curve(cost=np.ones((1, 3)), figure=np.ones((1, 3))), "two points"),
    ],
)
def test_invalid_input_is_refused(call: Callable[[], object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()


# ------------------------------------------------------------------------------------------------ length


def test_lengths_that_are_equal_change_nothing() -> None:
    outcomes, lengths = array(1, 1, 1, 0, 0.5), array(9, 8, 7, 6, 5)
    assert length_controlled_win_rate(outcomes, lengths, lengths, seed=0).value == pytest.approx(0.7, abs=1e-6)


def test_a_win_rate_that_length_explains_is_a_half() -> None:
    # Longer by 10 wins 9 times of 10, shorter by 10 wins once of 10; longer is three times as frequent: 0.7 raw. With
    # features tanh(±10/sd), the fit passes through both groups: θ + φ f₊ = log 9 and θ + φ f₋ = −log 9.
    longer, shorter = np.tile(array(*[1] * 9, 0), 30), np.tile(array(*[0] * 9, 1), 10)
    outcomes = np.concatenate([longer, shorter])
    ours = np.concatenate([np.full(300, 20.0), np.full(100, 0.0)])
    theirs = np.full(400, 10.0)
    sd = 10 * math.sqrt(0.75)  # Δ is 10 with ¾, −10 with ¼
    f = math.tanh(10 / sd)
    assert mean(outcomes, seed=0).value == pytest.approx(0.7)
    phi, theta = math.log(9) / f, 0.0
    found = length_controlled_win_rate(outcomes, ours, theirs, seed=0)
    assert found.value == pytest.approx(1 / (1 + math.exp(-theta)), abs=0.02), phi  # the ridge shrinks φ slightly
    assert found.low < 0.5 < found.high


def test_length_that_explains_everything_has_a_finite_answer() -> None:
    outcomes, ours, theirs = array(1, 1, 1, 0, 0, 0), array(9, 9, 9, 1, 1, 1), np.full(6, 5.0)
    assert length_controlled_win_rate(outcomes, ours, theirs, seed=0).value == pytest.approx(0.5, abs=1e-6)


def test_wins_only_are_a_rate_of_one() -> None:
    lengths = array(3, 5, 4)
    assert length_controlled_win_rate(np.ones(3), lengths, lengths, seed=0).value == pytest.approx(1.0, abs=1e-4)


# ------------------------------------------------------------------------------------------------ at equal cost


def curve(costs: list[float], figures: list[list[float]]) -> Curve:
    return Curve(cost=np.repeat(np.asarray(costs)[:, None], len(figures[0]), 1), figure=np.asarray(figures))


def test_a_difference_between_the_points_by_hand() -> None:
    # At cost 2 ours is half way from 0 (at 1) to 1 (at 3), theirs a quarter of the way from 0 (at 1) to 1 (at 5).
    ours, theirs = curve([3, 1], [[1, 1], [0, 0]]), curve([1, 5], [[0, 0], [1, 1]])
    assert difference_at(ours, theirs, 2.0, seed=0) == Interval(value=0.25, low=0.25, high=0.25)


def test_nothing_is_extrapolated() -> None:
    ours, theirs = curve([1, 3], [[0, 0], [1, 1]]), curve([2, 5], [[0, 0], [1, 1]])
    assert difference_at(ours, theirs, 1.5, seed=0) is None
    assert difference_at(ours, theirs, 4.0, seed=0) is None
    assert difference_at(ours, theirs, 2.5, seed=0) is not None


def test_an_uncertain_cost_gives_no_difference() -> None:
    # The most expensive point costs 0.1 on one prompt and 3.9 on the other: 0.1, below 1.5, in a quarter of the draws.
    theirs = Curve(cost=np.asarray([[0.0, 0.0], [0.1, 3.9]]), figure=np.asarray([[0.0, 0.0], [1.0, 1.0]]))
    assert difference_at(curve([0, 4], [[0, 0], [1, 1]]), theirs, 1.5, seed=0) is None


# ------------------------------------------------------------------------------------------------ coverage


def covered(draw: Callable[[np.random.Generator], tuple[Interval, float]], times: int = 300) -> float:
    """Return the share of `times` simulated data sets whose interval contains the truth (standard error 1.3 %)."""
    generator = np.random.default_rng(7)
    found = [draw(generator) for _ in range(times)]
    return sum(interval.low <= truth <= interval.high for interval, truth in found) / times


def a_skewed_mean(generator: np.random.Generator) -> tuple[Interval, float]:
    return mean(generator.exponential(2.0, 80), seed=int(generator.integers(1 << 30)), num_draws=400), 2.0


def a_win_rate(generator: np.random.Generator) -> tuple[Interval, float]:
    outcomes = generator.choice([0.0, 0.5, 1.0], size=100, p=[0.3, 0.2, 0.5])
    return mean(outcomes, seed=int(generator.integers(1 << 30)), num_draws=400), 0.6


def a_rare_proportion(generator: np.random.Generator) -> tuple[Interval, float]:
    return wilson(float(generator.binomial(60, 0.05)), 60), 0.05


def a_length_controlled_rate(generator: np.random.Generator) -> tuple[Interval, float]:
    # Drawn from the fitted model: θ = log 1.5, so the rate is 0.6; φ = 1.
    gaps = generator.normal(2, 5, 200)
    chance = 1 / (1 + np.exp(-(math.log(1.5) + np.tanh(gaps / gaps.std()))))
    outcomes = (generator.random(200) < chance).astype(np.float64)
    seed = int(generator.integers(1 << 30))
    return length_controlled_win_rate(outcomes, gaps + 20, np.full(200, 20.0), seed=seed, num_draws=300), 0.6


def a_difference_at_equal_cost(generator: np.random.Generator) -> tuple[Interval, float]:
    # Ours wins with probability 0.5 at KL 1 and 0.8 at KL 3, theirs with 0.5 and 0.6: 0.65 − 0.55 at KL 2.
    def simulated_curve(high: float) -> Curve:
        wins = np.stack([generator.random(100) < 0.5, generator.random(100) < high]).astype(np.float64)
        return Curve(cost=np.asarray([[1.0], [3.0]]) + generator.normal(0, 0.3, (2, 100)), figure=wins)

    found = difference_at(
        simulated_curve(0.8), simulated_curve(0.6), 2.0, seed=int(generator.integers(1 << 30)), num_draws=300
    )
    assert found is not None
    return found, 0.1


@pytest.mark.parametrize(
    "draw",
    [
        a_skewed_mean,
        a_win_rate,
        a_rare_proportion,
        a_length_controlled_rate,
        a_difference_at_equal_cost,
    ],
)
def test_ninety_five_percent_contain_the_truth(draw: Callable[[np.random.Generator], tuple[Interval, float]]) -> None:
    assert 0.92 <= covered(draw) <= 0.98


def test_an_interval_is_drawn_over_prompts_not_over_completions() -> None:
    # Eight copies of a prompt's value add no information: callers must give one value per prompt.
    values = np.random.default_rng(1).normal(size=64)
    alone = bootstrap(lambda w: w @ values / 64, 64, seed=0)
    assert alone == mean(values, seed=0)
    copies = mean(np.repeat(values, 8), seed=0)
    assert (copies.high - copies.low) < 0.5 * (alone.high - alone.low), "copies would look like certainty"
