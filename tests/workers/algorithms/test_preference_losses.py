"""Losses and settings of the DPO family, with the arithmetic written out."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from workers.algorithms.base import MicroBatch, totals_of
from workers.algorithms.dpo import loss, prepare
from workers.algorithms.preference_losses import COSTS
from workers.config import DpoConfig
from workers.config.preferences import LOSS_ARGUMENTS
from workers.ragged import Ragged
from workers.types import ScoredBatch, TrainBatch

MakeScored = Callable[..., ScoredBatch]
MicroBatchOf = Callable[..., MicroBatch]

# Pair 0: 3 tokens against 1. Log-ratios of the chosen −0.5 + 1 + 0.25 = 0.75, of the rejected −0.5.
# Pair 1: 1 token against 2.  Log-ratios of the chosen −2, of the rejected 1 − 0.5 = 0.5.
LENGTHS = [[3, 1], [1, 2]]
REFERENCE = [-1.0, -2.0, -1.25, -0.5, -1.0, -2.0, -0.5]
LOGPROBS = [-1.5, -1.0, -1.0, -1.0, -3.0, -1.0, -1.0]
SCORES = [3.0, 0.5]  # margins of the pairs' scores
BETA = 0.5


def config(**settings: Any) -> DpoConfig:
    return DpoConfig.model_validate({"type": "dpo", "beta": BETA, **settings})


def log_sigmoid(x: float) -> float:
    return -math.log1p(math.exp(-x))


def smoothed(h: float, s: float) -> float:
    return -(1 - s) * log_sigmoid(h) - s * log_sigmoid(-h)


def value_of(micro_batch: MicroBatchOf, settings: DpoConfig) -> float:
    fields = {"reference_logprobs": REFERENCE} if settings.needs_reference else {}
    batch = micro_batch(LENGTHS, margins=SCORES, **fields)
    return loss(torch.tensor(LOGPROBS), batch, settings)[0].item()


# β times the difference of log-ratios: 0.5 (0.75 + 0.5) = 0.625 and 0.5 (−2 − 0.5) = −1.25.
# Per token: 0.75/3 − (−0.5)/1 = 0.75 and −2/1 − 0.5/2 = −2.25; times β: 0.375 and −1.125.
# Without reference: −3.5/3 + 1 = −1/6 and −3 + 2/2 = −2; times β: −1/12 and −1.
# With ld_alpha 0.5, only one token of pair 0's chosen is shared: −0.5 + 0.5 (1 + 0.25) = 0.125, β (0.125 + 0.5) =
# 0.3125; of pair 1's rejected: 1 − 0.25 = 0.75, β (−2 − 0.75) = −1.375. The divisor stays the whole length:
# 0.125/3 + 0.5 = 13/24 and −2 − 0.75/2 = −2.375.
@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({}, [smoothed(0.625, 0), smoothed(-1.25, 0)]),
        ({"label_smoothing": 0.2}, [smoothed(0.625, 0.2), smoothed(-1.25, 0.2)]),
        ({"loss_type": "hinge"}, [1 - 0.625, 1 + 1.25]),
        ({"loss_type": "hinge", "beta": 2.0}, [0, 1 + 5]),  # 2 · 1.25 is more than 1
        (
            {"loss_type": "robust", "label_smoothing": 0.2},
            [
                (-0.8 * log_sigmoid(0.625) + 0.2 * log_sigmoid(-0.625)) / 0.6,
                (-0.8 * log_sigmoid(-1.25) + 0.2 * log_sigmoid(1.25)) / 0.6,
            ],
        ),
        ({"loss_type": "sigmoid_norm"}, [smoothed(0.375, 0), smoothed(-1.125, 0)]),
        ({"loss_type": "ipo"}, [(0.75 - 1) ** 2, (-2.25 - 1) ** 2]),  # 1/(2β) = 1
        ({"loss_type": "ipo", "beta": 0.25}, [(0.75 - 2) ** 2, (-2.25 - 2) ** 2]),
        ({"loss_type": "simpo"}, [smoothed(-1 / 12 - 0.5, 0), smoothed(-1 - 0.5, 0)]),
        (
            {"loss_type": "simpo", "simpo_gamma": 2.0, "label_smoothing": 0.1},
            [smoothed(-1 / 12 - 2, 0.1), smoothed(-1 - 2, 0.1)],
        ),
        ({"ld_alpha": 0.5}, [smoothed(0.3125, 0), smoothed(-1.375, 0)]),
        ({"ld_alpha": 0.0}, [smoothed(0.5 * (-0.5 + 0.5), 0), smoothed(0.5 * (-2 - 1), 0)]),
        ({"loss_type": "ipo", "ld_alpha": 0.5}, [(13 / 24 - 1) ** 2, (-2.375 - 1) ** 2]),
        ({"length_alpha": 0.1}, [smoothed(0.625 + 0.1 * 2, 0), smoothed(-1.25 - 0.1 * 1, 0)]),
        ({"loss_type": "hinge", "length_alpha": 0.1}, [1 - 0.825, 1 + 1.35]),
        # Only pair 1's chosen fell below the reference, by 2: 0.5 · 5 · 2.
        ({"dpop_lambda": 5.0}, [smoothed(0.625, 0), smoothed(-1.25 - 5, 0)]),
        ({"margin_weight": 0.2}, [smoothed(0.625 - 0.6, 0), smoothed(-1.25 - 0.1, 0)]),
        ({"loss_type": "hinge", "margin_weight": 0.2}, [1 - 0.025, 1 + 1.35]),
        ({"loss_type": "simpo", "margin_weight": 0.2}, [smoothed(-1 / 12 - 1.1, 0), smoothed(-1.6, 0)]),
        # Each log-ratio by itself, the chosen's against 1/(2β) and the rejected's against −1/(2β).
        ({"loss_type": "sppo"}, [(0.75 - 1) ** 2 + (-0.5 + 1) ** 2, (-2 - 1) ** 2 + (0.5 + 1) ** 2]),
        ({"loss_type": "sppo", "beta": 0.25}, [(0.75 - 2) ** 2 + (-0.5 + 2) ** 2, (-2 - 2) ** 2 + (0.5 + 2) ** 2]),
        # Log-probabilities: −3.5 and −1 in pair 0, −3 and −2 in pair 1.
        ({"exploration_alpha": 0.1}, [smoothed(0.625, 0) - 0.1 * 4.5 / 2, smoothed(-1.25, 0) - 0.1 * 5 / 2]),
    ],
    ids=str,
)  # fmt: skip
def test_by_hand(settings: dict[str, Any], expected: list[float], micro_batch: MicroBatchOf) -> None:
    assert value_of(micro_batch, config(**settings)) == pytest.approx(sum(expected) / 2, rel=1e-5)


SOFT = [0.9, 0.1, 0.7, 0.3]  # pair 0's chosen is preferred with probability 0.9, pair 1's with 0.7


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({}, [smoothed(0.625, 0.1), smoothed(-1.25, 0.3)]),
        # A label of 0.9 that is wrong with probability 0.2 is one of 0.9 · 0.8 + 0.1 · 0.2 = 0.74.
        ({"label_smoothing": 0.2}, [smoothed(0.625, 0.26), smoothed(-1.25, 0.3 * 0.8 + 0.7 * 0.2)]),
        ({"loss_type": "hinge"}, [0.9 * 0.375 + 0.1 * 1.625, 0.7 * 2.25]),  # 1 + h of pair 1 is below 0
        # With β = 1/2, 1/(2β) = 1: the square to the expected target is larger by 0.9 · 0.1 · 4 and 0.7 · 0.3 · 4.
        ({"loss_type": "ipo"}, [(0.75 - 0.8) ** 2 + 0.36, (-2.25 - 0.4) ** 2 + 0.84]),
        (
            {"loss_type": "sppo"},
            [(0.75 - 0.8) ** 2 + (-0.5 + 0.8) ** 2 + 0.72, (-2 - 0.4) ** 2 + (0.5 + 0.4) ** 2 + 1.68],
        ),
        (
            {"loss_type": "simpo"},
            [
                -0.9 * log_sigmoid(-1 / 12 - 0.5) - 0.1 * log_sigmoid(1 / 12 - 0.5),
                -0.7 * log_sigmoid(-1 - 0.5) - 0.3 * log_sigmoid(1 - 0.5),
            ],
        ),
    ],
    ids=str,
)
def test_soft_labels_by_hand(settings: dict[str, Any], expected: list[float], micro_batch: MicroBatchOf) -> None:
    found = config(soft_labels="margin", **settings)
    fields = {"reference_logprobs": REFERENCE} if found.needs_reference else {}
    batch = micro_batch(LENGTHS, soft_labels=SOFT, **fields)
    assert loss(torch.tensor(LOGPROBS), batch, found)[0].item() == pytest.approx(sum(expected) / 2, rel=1e-5)


def test_win_rates_of_a_pair_need_not_sum_to_one(micro_batch: MicroBatchOf) -> None:
    """Check SPPO's targets (0.9 − 1/2)/β and (0.6 − 1/2)/β by the gradient, twice the distance to them."""
    batch = micro_batch([[1, 1]], reference_logprobs=[0, 0], soft_labels=[0.9, 0.6])
    logprobs = torch.tensor([-1.0, -0.5], requires_grad=True)
    loss(logprobs, batch, config(loss_type="sppo", soft_labels="votes"))[0].backward()
    assert logprobs.grad is not None
    assert logprobs.grad.tolist() == pytest.approx([2 * (-1 - 0.8), 2 * (-0.5 - 0.2)])


def test_soft_labels_of_a_micro_batch_are_those_of_its_rows() -> None:
    batch = TrainBatch(
        prompts=Ragged.of([[1]] * 3),
        completions=Ragged.of([[0]] * 6),
        row_offsets=np.arange(0, 7, 2),
        soft_labels=np.float32([0.1, 0.2, 0.3, 0.4, 0.5, 0.6]),
    )
    rows = np.array([2, 0])
    found = MicroBatch.of(batch, rows, totals_of(batch, rows)).soft_labels
    assert found is not None
    assert found.tolist() == pytest.approx([0.5, 0.6, 0.1, 0.2])


def test_ld_alpha_of_one_is_none(micro_batch: MicroBatchOf) -> None:
    assert value_of(micro_batch, config(ld_alpha=1.0)) == pytest.approx(value_of(micro_batch, config()))


@pytest.mark.parametrize(
    ("loss_type", "expected"),
    [
        ("sigmoid", math.log(2)),
        ("sigmoid_norm", math.log(2)),
        ("robust", math.log(2)),
        ("hinge", 1.0),
        ("ipo", 1.0),  # 1/(2β)² with β = 1/2
        ("sppo", 2.0),  # twice that, one for each completion
    ],
)
def test_policy_equal_to_reference(loss_type: str, expected: float, micro_batch: MicroBatchOf) -> None:
    smoothing = {"label_smoothing": 0.3} if loss_type == "robust" else {}
    settings = config(loss_type=loss_type, dpop_lambda=50.0 if loss_type == "sigmoid" else 0.0, **smoothing)
    batch = micro_batch(LENGTHS, reference_logprobs=REFERENCE)
    value, stats = loss(torch.tensor(REFERENCE), batch, settings)
    assert value.item() == pytest.approx(expected)
    assert stats["rewards/chosen"].item() == stats["rewards/margins"].item() == 0


EVERY_ARGUMENT: dict[str, Any] = {
    "label_smoothing": 0.1,
    "ld_alpha": 0.3,
    "length_alpha": 0.05,
    "dpop_lambda": 2.0,
    "margin_weight": 0.3,
    "simpo_gamma": 1.5,
    "soft_labels": "margin",
    "label_temperature": 2.0,
    "exploration_alpha": 0.3,
}


@pytest.mark.parametrize("loss_type", COSTS)
def test_gradient_against_finite_differences(loss_type: str, micro_batch: MicroBatchOf) -> None:
    arguments = {name: EVERY_ARGUMENT[name] for name in LOSS_ARGUMENTS[loss_type]}
    settings = config(loss_type=loss_type, sft_weight=0.5, **arguments)
    labels = {"soft_labels": SOFT} if settings.soft_labels else {}
    single = micro_batch(LENGTHS, reference_logprobs=REFERENCE, margins=SCORES, **labels)
    assert single.reference_logprobs is not None
    assert single.margins is not None
    batch = replace(single, reference_logprobs=single.reference_logprobs.double(), margins=single.margins.double())
    if not settings.needs_reference:
        batch = replace(batch, reference_logprobs=None)
    logprobs = torch.tensor(LOGPROBS, dtype=torch.float64, requires_grad=True)

    def value(x: Tensor) -> Tensor:
        return loss(x, batch, settings)[0]

    assert torch.autograd.gradcheck(value, logprobs, eps=1e-6, atol=1e-8)


@pytest.mark.parametrize("s", [0.1, 0.4])
@pytest.mark.parametrize("h", [-3.0, 0.0, 0.7, 4.0])
def test_robust_is_unbiased_under_flipped_labels(h: float, s: float) -> None:
    """Check (1 − s) cost(h) + s cost(−h) = −log σ(h): flipping a label changes the sign of h."""
    cost, settings = COSTS["robust"].cost, config(loss_type="robust", label_smoothing=s)
    clean, flipped = cost(torch.tensor([h, -h], dtype=torch.float64), settings).tolist()
    assert (1 - s) * clean + s * flipped == pytest.approx(-log_sigmoid(h))


def test_the_conservative_loss_is_minimal_at_the_assumed_label_noise() -> None:
    h = torch.linspace(-6, 6, 2401, dtype=torch.float64)
    least = h[COSTS["sigmoid"].cost(h, config(label_smoothing=0.2)).argmin()].item()
    assert least == pytest.approx(math.log(0.8 / 0.2), abs=0.005)


def test_metrics_of_a_loss_without_reference(micro_batch: MicroBatchOf) -> None:
    _, stats = loss(torch.tensor(LOGPROBS), micro_batch(LENGTHS), config(loss_type="simpo"))
    assert {name: stats[name].item() for name in stats if name.startswith("rewards")} == pytest.approx(
        {
            "rewards/chosen": BETA * (-3.5 / 3 - 3) / 2,
            "rewards/rejected": BETA * (-1 - 1) / 2,
            "rewards/margins": (-1 / 12 - 1) / 2,
            "rewards/accuracies": 0.0,
        }
    )


def test_simpo_prepares_pairs_without_a_reference(scored: MakeScored) -> None:
    given = scored([[1, 2]], rewards=[0, 3], logprobs=[-1] * 3)
    batch, metrics = prepare(given, config(loss_type="simpo"))
    assert batch.reference_logprobs is None
    assert batch.sources is not None
    assert batch.sources.tolist() == [1, 0]
    assert "objective/kl" not in metrics
    with pytest.raises(AssertionError):
        prepare(given, config())


def test_a_loss_with_a_reference_refuses_a_batch_without(micro_batch: MicroBatchOf) -> None:
    with pytest.raises(AssertionError, match="lacks a field"):
        loss(torch.tensor(LOGPROBS), micro_batch(LENGTHS), config())


def test_tables_agree() -> None:
    assert list(COSTS) == list(LOSS_ARGUMENTS)
    arguments = {name for names in LOSS_ARGUMENTS.values() for name in names}
    assert arguments == set(EVERY_ARGUMENT) <= set(DpoConfig.model_fields)
