from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from workers.algorithms.base import MicroBatch, totals_of
from workers.algorithms.kto import loss, prepare
from workers.config import KtoConfig
from workers.types import ScoredBatch

MicroBatchOf = Callable[..., MicroBatch]

# Log-ratios of the completions: 0.5 + 0.5 = 1 (desirable), −2 (not), 1 − 0.5 = 0.5 (desirable).
LENGTHS = [[2], [1], [2]]
REFERENCE = [-1.5, -1.5, -1.0, -2.0, -0.5]
LOGPROBS = [-1.0, -1.0, -3.0, -1.0, -1.0]
LABELS = [1.0, 0.0, 1.0]


def config(**settings: Any) -> KtoConfig:
    return KtoConfig.model_validate({"type": "kto", "beta": 0.5, **settings})


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


@pytest.fixture
def update(micro_batch: MicroBatchOf) -> Callable[..., MicroBatch]:
    def update(baseline: float | None, labels: list[float] = LABELS) -> MicroBatch:
        batch = micro_batch(LENGTHS, reference_logprobs=REFERENCE, labels=labels)
        assert batch.totals.desirable == sum(labels)
        return replace(batch, totals=replace(batch.totals, baseline=baseline))

    return update


def test_loss_by_hand(update: Callable[..., MicroBatch]) -> None:
    value, stats = loss(torch.tensor(LOGPROBS), update(0.4), config(desirable_weight=1.5, undesirable_weight=2.0))
    good_1, bad, good_2 = 1 - sigmoid(0.5 * 0.6), 1 - sigmoid(0.5 * 2.4), 1 - sigmoid(0.5 * 0.1)
    expected = (1.5 * good_1 + 2 * bad + 1.5 * good_2) / 3
    assert value.item() == pytest.approx(expected)
    assert {name: x.item() for name, x in stats.items()} == pytest.approx(
        {
            "loss": expected,
            "kl": 0.4,
            "rewards/chosen": 0.5 * (1 + 0.5) / 2,
            "rewards/rejected": 0.5 * -2,
            "rewards/margins": 0.375 + 1,
            "logps/chosen": (-2 - 2) / 2,
            "logps/rejected": -3,
        }
    )


def test_gradient_by_hand(update: Callable[..., MicroBatch]) -> None:
    # d/dρ of 1 − σ(β(ρ − z)): −β σ'(β(ρ − z)); of an undesirable one the opposite sign; a third each.
    logprobs = torch.tensor(LOGPROBS, dtype=torch.float64, requires_grad=True)
    loss(logprobs, update(0.4), config())[0].backward()
    slopes = [0.5 * sigmoid(x) * sigmoid(-x) / 3 for x in (0.5 * 0.6, 0.5 * -2.4, 0.5 * 0.1)]
    assert logprobs.grad is not None
    assert logprobs.grad.tolist() == pytest.approx([-slopes[0]] * 2 + [slopes[1]] + [-slopes[2]] * 2)


def test_a_baseline_below_zero_counts_as_zero(update: Callable[..., MicroBatch]) -> None:
    below, stats = loss(torch.tensor(LOGPROBS), update(-3.0), config())
    at_zero, _ = loss(torch.tensor(LOGPROBS), update(0.0), config())
    assert below.item() == at_zero.item()
    assert stats["kl"].item() == 0


def test_policy_equal_to_reference_costs_half_the_weights(update: Callable[..., MicroBatch]) -> None:
    value, stats = loss(torch.tensor(REFERENCE), update(0.0), config(desirable_weight=1.2, undesirable_weight=0.6))
    assert value.item() == pytest.approx((1.2 + 0.6 + 1.2) / 3 / 2)
    assert stats["rewards/margins"].item() == 0


@pytest.mark.parametrize(("labels", "absent"), [([1.0] * 3, "rejected"), ([0.0] * 3, "chosen")])
def test_figures_of_a_kind_that_is_not_there_are_left_out(
    labels: list[float], absent: str, update: Callable[..., MicroBatch]
) -> None:
    _, stats = loss(torch.tensor(LOGPROBS), update(0.0, labels), config())
    present = {"rejected": "chosen", "chosen": "rejected"}[absent]
    assert stats[f"rewards/{present}"].item() == pytest.approx(0.5 * (1 - 2 + 0.5) / 3)
    assert not {f"rewards/{absent}", f"logps/{absent}", "rewards/margins"} & set(stats)


def test_extremes_stay_finite(micro_batch: MicroBatchOf) -> None:
    batch = micro_batch([[1], [1]], reference_logprobs=[0, 0], labels=[1, 0])
    logprobs = torch.tensor([-1e5, 0.0], requires_grad=True)
    value, _ = loss(logprobs, replace(batch, totals=replace(batch.totals, baseline=1e5)), config())
    value.backward()
    assert value.item() == pytest.approx((1 + 0) / 2)
    assert logprobs.grad is not None
    assert logprobs.grad.tolist() == [0, 0]


def test_an_unmeasured_baseline_is_refused(update: Callable[..., MicroBatch]) -> None:
    with pytest.raises(AssertionError, match="has not measured"):
        loss(torch.tensor(LOGPROBS), update(None), config())


def test_prepare_takes_the_mismatched_completions_apart(scored: Callable[..., ScoredBatch]) -> None:
    given = scored([[1, 2], [2, 3]], rewards=[1, 0, 0, 0], reference=[-1, -2, -3, -4, -5, -6, -7, -8])
    batch, metrics = prepare(given, config())
    assert batch.labels is not None
    assert batch.labels.tolist() == [1, 0]
    assert [tokens.tolist() for tokens in batch.completions] == [[0], [2, 2]]
    assert batch.reference_logprobs is not None
    assert batch.reference_logprobs.tolist() == [-1, -4, -5]
    baseline = batch.baseline
    assert baseline is not None
    assert [tokens.tolist() for tokens in baseline.completions] == [[1, 1], [3, 3, 3]]
    assert baseline.reference_logprobs is not None
    assert baseline.reference_logprobs.tolist() == [-2, -3, -6, -7, -8]
    for prompts in (batch.prompts, baseline.prompts):
        assert [tokens.tolist() for tokens in prompts] == [[100], [101, 101]]
    assert batch.row_offsets.tolist() == baseline.row_offsets.tolist() == [0, 1, 2]
    assert metrics == {"num_tokens": 1 + 2 + 1 + 2, "data/desirable": 0.5}


def test_rows_without_a_mismatched_completion_are_refused(scored: Callable[..., ScoredBatch]) -> None:
    with pytest.raises(AssertionError, match="mismatched"):
        prepare(scored([[1, 1], [1]], rewards=[1, 0, 0], reference=[0] * 3), config())


def test_rows_may_be_picked_in_any_order(scored: Callable[..., ScoredBatch]) -> None:
    given = scored([[1, 1], [1, 1], [1, 1]], rewards=[1, 0, 0, 0, 1, 0], reference=[0] * 6)
    batch, _ = prepare(given, config())
    some = np.array([2, 1])
    micro = MicroBatch.of(batch, some, totals_of(batch, some))
    assert micro.labels is not None
    assert (micro.labels.tolist(), micro.totals.desirable) == ([1, 0], 1)
