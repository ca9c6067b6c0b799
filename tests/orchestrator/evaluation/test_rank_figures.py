"""Gains, costs and verdicts of best of n, on scores written by hand, and the text that reports them."""

from __future__ import annotations

import io
import math
from functools import partial
from typing import Any

import numpy as np
import pytest

from orchestrator.evaluation.best_of import chances
from orchestrator.evaluation.figures import BootstrapConfig, Figure
from orchestrator.evaluation.rank_figures import Cost, gains_of, gold_summary, selection, verdict
from orchestrator.evaluation.rank_result import Gains, Ranked, Ranking
from orchestrator.evaluation.rank_show import show
from orchestrator.evaluation.statistics import Values

BOOTSTRAP = BootstrapConfig()
NAN = math.nan


def prompts(*groups: list[float]) -> list[Values]:
    return [np.asarray(group, np.float64) for group in groups]


def cost(num_prompts: int, num_samples: int, num_passes: int = 1) -> Cost:
    """Return a cost of 10 tokens in a prompt and 5 in a sample, 4 s of engines and 1 s of scoring."""
    return Cost(
        num_prompts=num_prompts,
        num_samples=num_samples,
        prompt_tokens=10 * num_prompts,
        generated_tokens=5 * num_prompts * num_samples,
        num_passes=num_passes,
        engine_seconds=4.0,
        scoring_seconds=1.0,
    )


def gains(scores: list[Values], gold: list[Values]) -> Gains:
    found = gains_of(gold, lambda p, n: chances(scores[p], n), cost(len(scores), len(scores[0])), BOOTSTRAP)
    assert found is not None
    return found


def figure(low: float, high: float, num_prompts: int = 100) -> Figure:
    return Figure(value=(low + high) / 2, low=low, high=high, num_prompts=num_prompts, interval="bootstrap")


def test_a_score_that_ranks_as_the_gold_score_gains_and_its_opposite_loses() -> None:
    gold = prompts(*[[0.0, 1.0, 0.0, 1.0]] * 12, *[[1.0, 0.0, 0.0, 0.0]] * 12)
    same, opposite = gains(gold, gold), gains([-g for g in gold], gold)
    # Mean 3/8. Best of 2 by the gold score: 1 − C(2,2)/C(4,2) = 5/6 with two right of four, 1 − C(3,2)/C(4,2) = 1/2
    # with one.
    assert [point.n for point in same.curve] == [1, 2, 4]
    assert [point.gold.value for point in same.curve] == pytest.approx([3 / 8, (5 / 6 + 1 / 2) / 2, 1])
    assert same.curve[-1].gain.value == pytest.approx(5 / 8)
    assert (same.verdict, same.losses.value) == ("better", 0)
    assert same.wins.value == pytest.approx(5 / 8)
    # The opposite chooses a wrong one: at 2, only where both are right (1/6 of half the prompts).
    assert [point.gold.value for point in opposite.curve] == pytest.approx([3 / 8, 1 / 12, 0])
    assert (opposite.verdict, opposite.wins.value) == ("worse", 0)
    assert opposite.losses.value == pytest.approx(3 / 8)


def test_equal_scores_choose_at_random_and_gain_exactly_nothing() -> None:
    gold = prompts(*[[0.1, 0.1, 0.4]] * 30)
    found = gains(prompts(*[[2.0, 2.0, 2.0]] * 30), gold)
    assert [point.gain.value for point in found.curve] == [0, 0, 0], "not a rounding error that all prompts share"
    assert found.verdict == "not_shown"
    assert [point.tokens_per_gain for point in found.curve] == [None, None, None]


def test_prompts_without_all_gold_scores_are_left_out() -> None:
    gold = prompts([1.0, 0.0], [NAN, 1.0], [1.0, 1.0])
    found = gains(prompts([2.0, 1.0], [2.0, 1.0], [2.0, 1.0]), gold)
    assert found.curve[-1].gold.num_prompts == 2
    assert found.curve[-1].gain.value == pytest.approx(1 / 4)
    summary = gold_summary("math", gold, BOOTSTRAP)
    assert summary is not None
    assert (summary.mean.value, summary.num_ties, summary.num_left_out) == (3 / 4, 1, 1)
    assert {n: best.value for n, best in summary.best.items()} == pytest.approx({1: 3 / 4, 2: 1})
    assert gold_summary("math", prompts([NAN, 1.0]), BOOTSTRAP) is None


def test_abstentions_and_ties_of_a_score_are_counted() -> None:
    scores = prompts([1.0, 3.0, NAN], [2.0, 2.0, 2.0], [NAN, NAN, NAN])
    lengths = prompts([1.0, 2.0, 6.0], [3.0, 3.0, 3.0], [1.0, 2.0, 3.0])
    best = [chances(group, 3) for group in scores]
    found = selection(scores, lengths, best, cost(3, 3), None, BOOTSTRAP)
    assert found.best is not None
    assert found.mean is not None
    assert (found.best.value, found.mean.value) == pytest.approx((2.5, 2))
    assert (found.num_ties, found.num_abstained) == (2, 4)
    # The best has 2 tokens; where all are equal or without a score, any: 3 and 2 on average.
    assert (found.best_length.value, found.mean_length.value) == pytest.approx((7 / 3, 8 / 3))
    nothing = selection(scores[2:], lengths[2:], best[2:], cost(1, 3), None, BOOTSTRAP)
    assert (nothing.best, nothing.mean) == (None, None)


def test_the_cost_of_fewer_samples() -> None:
    found = cost(num_prompts=2, num_samples=4, num_passes=2)
    # Per prompt, best of 4 generates 20 tokens and reads 10 + 20 twice. Seconds: 5 for 2 prompts of 4 samples.
    assert found.of(4) == (20, 60, 2.5)
    assert found.of(1) == (5, 30, 0.625)
    assert found.to_dict()["scored_tokens"] == 2 * (20 + 40)


def test_the_cost_of_a_gain() -> None:
    gold = prompts(*[[1.0, 0.0]] * 30)
    last = gains(gold, gold).curve[-1]
    # Per prompt, 5 further tokens are generated and 10 + 10 read for a gain of ½; one sample costs 4 s / 60.
    assert last.tokens_per_gain == pytest.approx((5 + 20) / 0.5)
    assert last.device_seconds_per_gain == pytest.approx((5 / 30 - 4 / 60) / 0.5)


@pytest.mark.parametrize(
    ("gain", "expected"),
    [
        (figure(0.01, 0.2), "better"),
        (figure(-0.2, -0.01), "worse"),
        (figure(-0.1, 0.1), "not_shown"),
        (figure(0.0, 0.0), "not_shown"),
        (figure(0.01, 0.2, num_prompts=19), "not_shown"),
        (Figure(value=1.0, low=None, high=None, num_prompts=1, interval=None), "not_shown"),
    ],
)
def test_a_verdict_follows_the_interval(gain: Figure, expected: str) -> None:
    assert verdict(gain) == expected


# ------------------------------------------------------------------------------------------------ text


def ranking(gold: list[Values] | None, **scores: list[Values]) -> Ranking:
    """Return a ranking of the given scores."""
    by = {}
    for name, values in scores.items():
        num_samples = len(values[0])
        chance = partial(lambda values, p, n: chances(values[p], n), values)
        best = [chance(p, num_samples) for p in range(len(values))]
        spent = cost(len(values), num_samples)
        found = None if gold is None else gains_of(gold, chance, spent, BOOTSTRAP)
        by[name] = selection(values, values, best, spent, found, BOOTSTRAP)
    first = next(iter(scores.values()))
    completions: Any = [
        [{"completion": "x", "scores": {name: float(v[p][0]) for name, v in scores.items()}}] for p in range(len(first))
    ]
    return Ranking(
        model={},
        reference=None,
        suite={},
        beta=0.1,
        by=by,
        gold=None if gold is None else gold_summary("math", gold, BOOTSTRAP),
        cost={},
        software={},
        dropped=2,
        notes=("a note",),
        ranked=tuple(Ranked(prompt_id=str(i), prompt="p", completions=tuple(c)) for i, c in enumerate(completions)),
    )


def text_of(found: Ranking) -> str:
    out = io.StringIO()
    show(found, out)
    return out.getvalue()


def test_a_warning_where_ranking_harms_or_does_not_help() -> None:
    gold = prompts(*[[0.0, 1.0, 0.0, 1.0]] * 15, *[[1.0, 1.0, 1.0, 1.0]] * 15)
    text = text_of(ranking(gold, policy=gold, implicit=[-g for g in gold], math=prompts(*[[1.0] * 4] * 30)))
    lines = text.splitlines()
    assert any(line.startswith("policy: best of 4 is better than a random sample: 1 ") for line in lines)
    assert any(line.startswith("WARNING: implicit: best of 4 is worse than a random sample: 0.5000 ") for line in lines)
    assert any(line.startswith("WARNING: math: best of 4 is not shown to be better") for line in lines)
    assert "note: the gold score is equal for all answers to 15 of 30 prompts" in text
    assert "note: math is equal for all answers to 30 of 30 prompts" in text
    assert "note: a note" in text
    assert "2 prompts are left out" in text
    curve = next(line for line in lines if line.startswith("implicit"))
    assert curve.split() == ["implicit", "0.750", "0.583", "0.500"]


def test_a_warning_without_a_gold_score_or_with_few_prompts() -> None:
    scores = prompts([1.0, 2.0], [2.0, 1.0])
    assert "WARNING: without a gold score nothing shows" in text_of(ranking(None, policy=scores))
    assert "a verdict needs at least 20 prompts" in text_of(ranking(scores, policy=scores))
