"""Agreement of several scorers on preference pairs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from fakes import experience

from workers.algorithms.dpo import prepare
from workers.algorithms.metrics import scorer_correlation
from workers.config import DpoConfig
from workers.stats import Metrics
from workers.types import Floats, ScoredBatch, TrainBatch

NAN = float("nan")


def scored(
    by_scorer: Mapping[str, Sequence[float] | Floats], weights: Mapping[str, float] | None = None, *, group: int = 2
) -> ScoredBatch:
    """Return groups of completions that differ, scored by the weighted sum of `by_scorer`."""
    weights = weights or {}
    given = {name: np.float32(values) for name, values in by_scorer.items()}
    size = len(next(iter(given.values())))
    tokens = [[[i] for i in range(start, start + group)] for start in range(0, size, group)]
    prompts = [[size + g] for g in range(len(tokens))]
    total = np.nansum([weights.get(name, 1.0) * values for name, values in given.items()], 0)
    return ScoredBatch(
        experience=experience(list(zip(prompts, tokens, strict=True)), logprobs=[-1.0] * size),
        rewards=total.astype(np.float32),
        reference_logprobs=np.zeros(size, np.float32),
        values=None,
        by_scorer=given,
        weights=weights,
    )


def made(batch: ScoredBatch, min_agreement: float | None = None, **settings: Any) -> tuple[list[int], Metrics]:
    """Return the completions of the pairs, chosen and rejected in turn, and the metrics."""
    pairs = {"min_agreement": min_agreement, **settings.pop("pairs", {})}
    train, metrics = prepare(batch, DpoConfig.model_validate({"type": "dpo", "pairs": pairs, **settings}))
    assert isinstance(train, TrainBatch)
    assert train.sources is not None
    return train.sources.tolist(), metrics


# Three groups of two: all prefer the first; two of three do; one does, and one ties.
OPINIONS = {"a": [1, 0, 5, 0, 9, 0], "b": [3, 2, 1, 0, 1, 2], "c": [1, 0, 1, 2, 0, 0]}


@pytest.mark.parametrize(
    ("minimum", "chosen"), [(None, [0, 2, 4]), (0.5, [0, 2, 4]), (0.6, [0, 2]), (2 / 3, [0, 2]), (0.7, [0]), (1.0, [0])]
)
def test_pairs_below_the_agreement_are_left_out(minimum: float | None, chosen: list[int]) -> None:
    sources, metrics = made(scored(OPINIONS), minimum)
    assert sources[::2] == chosen
    agreements = {0: 1.0, 2: 2 / 3, 4: 0.5}
    assert metrics["pairs/agreement"] == pytest.approx(np.mean([agreements[i] for i in chosen]))
    if minimum is None:
        assert "pairs/disagreement" not in metrics
    else:
        assert metrics["pairs/disagreement"] == 3 - len(chosen)
        assert metrics["pairs/saturated_groups"] == pytest.approx((3 - len(chosen)) / 3)


def test_scorers_agree_by_their_weights() -> None:
    """Check that one with weight 0, and one that abstains, has no vote."""
    batch = scored({"a": [9, 0, 9, 0], "b": [0, 1, NAN, 1], "measured": [0, 1, 0, 1]}, {"b": 0.25, "measured": 0.0})
    _, metrics = made(batch)
    assert metrics["pairs/agreement"] == pytest.approx((1 / 1.25 + 1) / 2)
    assert made(batch, 0.9)[0] == [2, 3]


def test_no_other_pair_takes_the_place_of_one_in_dispute() -> None:
    # By the sum 0 > 1 > 2 > 3, but scorer b has 3 first: of the pairs (0, 3) and (1, 2) the first is in dispute.
    batch = scored({"a": [9, 6, 3, 0], "b": [2, 1, 0, 3]}, {"b": 0.1}, group=4)
    assert made(batch)[0] == [0, 3]
    assert made(batch, 1.0)[0] == []
    assert made(batch, 1.0, pairs={"per_prompt": 2})[0] == [1, 2]
    assert made(batch, 1.0, pairs={"per_prompt": None, "selection": "all"})[1]["pairs/disagreement"] == 3
    assert made(batch, 1.0, pairs={"per_prompt": None, "selection": "all", "max_pairs": 2})[1]["pairs/capped"] == 1


def test_what_is_not_dropped_is_softened_by_the_same_votes() -> None:
    batch = scored(OPINIONS)
    config = DpoConfig.model_validate({"type": "dpo", "soft_labels": "votes", "pairs": {"min_agreement": 0.6}})
    train, _ = prepare(batch, config)
    assert train.soft_labels is not None
    assert train.soft_labels.tolist() == pytest.approx([1, 0, 2 / 3, 1 / 3])
    _, metrics = prepare(batch, DpoConfig.model_validate({"type": "dpo", "soft_labels": "votes"}))
    assert metrics["pairs/count"] == 3


def test_one_scorer_agrees_with_nobody() -> None:
    _, metrics = made(scored({"a": [1, 0], "measured": [0, 1]}, {"measured": 0.0}))
    assert "pairs/agreement" not in metrics


def test_agreement_makes_pairs_of_noisy_scorers_right_more_often() -> None:
    """Draw 3,000 groups of 2, of which four scorers see the gold score with noise of twice its spread."""
    draw = np.random.Generator(np.random.Philox(7))
    gold = draw.normal(size=6000)
    noisy = {f"judge_{k}": (gold + 2 * draw.normal(size=6000)).astype(np.float32) for k in range(4)}
    batch = scored(noisy, group=2)
    right, kept, agreements = [], [], []
    for minimum in (None, 0.75, 1.0):
        sources, metrics = made(batch, minimum)
        chosen, rejected = np.reshape(sources, (-1, 2)).T
        right.append(float((gold[chosen] > gold[rejected]).mean()))
        kept.append(len(chosen) / 3000)
        agreements.append(metrics["pairs/agreement"])
    alone, _ = made(replace(batch, rewards=noisy["judge_0"]))
    chosen, rejected = np.reshape(alone, (-1, 2)).T
    assert (gold[chosen] > gold[rejected]).mean() + 0.05 < right[0]  # an ensemble is right more often than a judge
    # The figures of docs/methods.md.
    assert right == pytest.approx([0.77, 0.83, 0.91], abs=0.005)
    assert kept == pytest.approx([1, 0.68, 0.23], abs=0.005)
    assert agreements == sorted(agreements)
    assert agreements[-1] == 1


def test_the_correlation_of_scorers_is_within_groups() -> None:
    # Between the two groups both scores rise; within each of them they are opposite.
    opposite = scored({"a": [0, 1, 10, 11], "b": [1, 0, 11, 10]})
    assert scorer_correlation(opposite) == pytest.approx(-1)
    assert scorer_correlation(scored({"a": [0, 1, 10, 11], "b": [0, 5, 3, 8]})) == pytest.approx(1)
    three = scored({"a": [0, 1, 0, 1], "b": [0, 1, 0, 1], "c": [1, 0, 1, 0], "measured": [7, 9, 0, 1]}, {"measured": 0})
    assert scorer_correlation(three) == pytest.approx((1 - 1 - 1) / 3)
    assert scorer_correlation(scored({"a": [0, 1, 0, NAN], "b": [0.1, 0.1, 3, 4]})) is None  # b is constant
    assert made(opposite)[1]["objective/scorer_correlation"] == pytest.approx(-1)
