from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from pydantic import ValidationError

from workers.algorithms.base import MicroBatch
from workers.algorithms.ppo import critic_loss, loss, prepare
from workers.config import PpoConfig
from workers.types import Finish, ScoredBatch

MakeScored = Callable[..., ScoredBatch]
MicroBatchOf = Callable[..., MicroBatch]


def config(**settings: Any) -> PpoConfig:
    return PpoConfig.model_validate({"type": "ppo", **settings})


@pytest.fixture
def sampled(scored: MakeScored) -> ScoredBatch:
    return scored(
        [[2], [1]],
        rewards=[1, 3],
        logprobs=[-1, -2, -0.5],
        reference=[-1.5, -1, -0.5],
        values=[1, 2, 1],
        finish=[Finish.stop, Finish.length],
    )


def test_prepare_by_hand(sampled: ScoredBatch) -> None:
    # k1 = 0.5 −1 0, so that with kl_coef ½ the token rewards are −0.25, 0.5 + 1, 0 + 3.
    # γ = 1, λ = ½:  A_1 = 1.5 − 2 = −0.5,  A_0 = −0.25 + 2 − 1 + ½·(−0.5) = 0.5;  the other: A = 3 − 1 = 2.
    batch, _ = prepare(sampled, config(kl_coef=0.5, lam=0.5))
    assert batch.returns is not None
    assert batch.returns.tolist() == [0.5 + 1, -0.5 + 2, 2 + 1]
    # Mean of A: ⅔. Deviations −1/6 −7/6 8/6, squares add up to 114/36, variance 57/36.
    assert batch.advantages is not None
    root = math.sqrt(57)
    assert batch.advantages.tolist() == pytest.approx([-1 / root, -7 / root, 8 / root])


def test_each_completion_is_a_row_with_its_prompt(scored: MakeScored) -> None:
    two_each = scored([[1, 2], [1, 1]], rewards=[0] * 4, logprobs=[0] * 5, values=[0] * 5)
    batch, _ = prepare(two_each, config(kl_coef=0.0))
    assert [prompt.tolist() for prompt in batch.prompts] == [[100], [100], [101, 101], [101, 101]]
    assert batch.row_offsets.tolist() == [0, 1, 2, 3, 4]


def test_metrics_by_hand(sampled: ScoredBatch) -> None:
    _, metrics = prepare(sampled, config(kl_coef=0.5))
    assert metrics["objective/kl"] == (0.5 - 1 + 0) / 2
    assert metrics["objective/non_score_reward"] == -0.5 * -0.25
    assert metrics["objective/scores"] == 2
    assert metrics["objective/rlhf_reward"] == 2 + 0.125
    assert metrics["val/num_eos_tokens"] == 1


def test_explained_variance_by_hand(sampled: ScoredBatch, scored: MakeScored) -> None:
    # Returns 1.5, 1.5, 3 as above: squares of the deviations add up to 1.5. Those of R − V = A = 0.5, −0.5, 2: 114/36.
    _, metrics = prepare(sampled, config(kl_coef=0.5, lam=0.5))
    assert metrics["val/explained_variance"] == pytest.approx(1 - (114 / 36) / 1.5)
    exact = scored([[1], [1]], rewards=[1, 3], logprobs=[-1, -1], values=[1, 3])
    assert prepare(exact, config(kl_coef=0.0))[1]["val/explained_variance"] == 1
    equal = scored([[1], [1]], rewards=[1, 1], logprobs=[-1, -1], values=[1, 3])
    assert "val/explained_variance" not in prepare(equal, config(kl_coef=0.0))[1]


def test_missing_eos_penalty_applies_only_to_unfinished_completions(sampled: ScoredBatch) -> None:
    free, _ = prepare(sampled, config(kl_coef=0.0, lam=1.0))
    fined, metrics = prepare(sampled, config(kl_coef=0.0, lam=1.0, missing_eos_penalty=2.0))
    assert free.returns is not None
    assert free.returns.tolist() == [1, 1, 3]
    assert fined.returns is not None
    assert fined.returns.tolist() == [1, 1, 3 - 2]
    assert metrics["objective/scores"] == (1 + 1) / 2
    assert metrics["reward"] == 2  # as it was given


def test_whitened_rewards_keep_their_mean(sampled: ScoredBatch) -> None:
    # Token rewards 0 1 3: mean 4/3, squares 16/9 1/9 25/9, variance 21/9, so r' = (r − 4/3)/√(7/3) + 4/3.
    batch, _ = prepare(sampled, config(kl_coef=0.0, lam=1.0, whiten_rewards=True))
    first, second, third = ((r - 4 / 3) / math.sqrt(7 / 3) + 4 / 3 for r in (0, 1, 3))
    assert batch.returns is not None
    assert batch.returns.tolist() == pytest.approx([first + second, second, third])


# One token each of: raised and good, raised and bad, lowered and good, lowered and bad; ε = 0.2.
RATIOS, ADVANTAGES = [1.5, 1.5, 0.5, 0.5], [2.0, -1.0, 1.0, -1.0]


def test_loss_and_gradient_by_hand(micro_batch: MicroBatchOf) -> None:
    batch = micro_batch([[1]] * 4, old_logprobs=[-1] * 4, advantages=ADVANTAGES)
    logprobs = (torch.tensor(RATIOS).log() - 1).requires_grad_()
    value, stats = loss(logprobs, batch, config())
    value.backward()
    # −min(3, 2.4) − min(−1.5, −1.2) − min(0.5, 0.8) − min(−0.5, −0.8) = −2.4 + 1.5 − 0.5 + 0.8
    assert value.item() == pytest.approx(-0.6 / 4)
    # −ρA/4 where the unclipped term is the smaller, else nothing.
    assert logprobs.grad is not None
    assert logprobs.grad.tolist() == pytest.approx([0, 1.5 / 4, -0.5 / 4, 0])
    assert {name: x.item() for name, x in stats.items()} == pytest.approx(
        {
            "loss": -0.15,
            "loss/policy_avg": -0.15,
            "policy/approxkl_avg": (math.log(1.5) ** 2 + math.log(0.5) ** 2) / 4,
            "policy/clipfrac_avg": 2 / 4,
            "val/ratio": 1.0,
        }
    )


def test_on_policy_the_gradient_is_the_policy_gradient(micro_batch: MicroBatchOf) -> None:
    batch = micro_batch([[2], [2]], old_logprobs=[-1, -2, -3, -4], advantages=ADVANTAGES)
    logprobs = torch.tensor([-1.0, -2.0, -3.0, -4.0], requires_grad=True)
    loss(logprobs, batch, config())[0].backward()
    assert logprobs.grad is not None
    assert logprobs.grad.tolist() == [-a / 4 for a in ADVANTAGES]


def test_critic_loss_by_hand(micro_batch: MicroBatchOf) -> None:
    # Old value 1, return 2, at most 0.2 from the old value. New values:
    #   1.1  within reach:             0.9² = 0.81
    #   1.5  cut to 1.2:  max(0.5², 0.8²) = 0.64, and no gradient, for the constant 1.2 decides
    #   3.0  cut to 1.2:    max(1², 0.8²) = 1
    batch = micro_batch([[3]], old_values=[1, 1, 1], returns=[2, 2, 2])
    values = torch.tensor([1.1, 1.5, 3.0], requires_grad=True)
    value, stats = critic_loss(values, batch, config())
    value.backward()
    assert value.item() == pytest.approx((0.81 + 0.64 + 1) / 2 / 3)
    assert values.grad is not None
    assert values.grad.tolist() == pytest.approx([(1.1 - 2) / 3, 0, (3 - 2) / 3])
    assert stats["loss/value_avg"].item() == pytest.approx(2.45 / 6)
    assert stats["val/clipfrac_avg"].item() == pytest.approx(1 / 3)


def test_a_missing_field_is_named_as_a_fault(micro_batch: MicroBatchOf) -> None:
    with pytest.raises(AssertionError, match="lacks a field"):
        loss(torch.zeros(1), micro_batch([[1]], old_logprobs=[0]), config())


@pytest.mark.parametrize(
    ("estimator", "value", "slope"),
    [("k2", math.log(2) ** 2 / 2, math.log(2)), ("k3", math.log(2) - 0.5, 0.5)],
)
def test_kl_in_the_loss_by_hand(estimator: str, value: float, slope: float, micro_batch: MicroBatchOf) -> None:
    # π is twice π_ref at the first token, and as likely at the second.
    reference = [-1 - math.log(2), -1]
    batch = micro_batch([[2]], old_logprobs=[-1, -1], advantages=[0, 0], reference_logprobs=reference)
    logprobs = torch.tensor([-1.0, -1.0], requires_grad=True)
    found, stats = loss(logprobs, batch, config(kl_coef=3.0, kl_placement="loss", kl_estimator=estimator))
    found.backward()
    assert found.item() == pytest.approx(3 * value / 2)
    assert stats["kl"].item() == pytest.approx(value / 2)
    assert logprobs.grad is not None
    assert logprobs.grad.tolist() == pytest.approx([3 * slope / 2, 0])


def test_a_kl_in_the_loss_is_not_in_the_reward(sampled: ScoredBatch) -> None:
    batch, metrics = prepare(sampled, config(kl_coef=0.5, lam=1.0, kl_placement="loss", kl_estimator="k3"))
    assert batch.returns is not None
    assert batch.returns.tolist() == [1, 1, 3]
    assert metrics["objective/non_score_reward"] == 0
    assert batch.reference_logprobs is sampled.reference_logprobs


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        ({"kl_estimator": "k3"}, "kl_estimator is k1 with kl_placement reward"),
        ({"kl_placement": "loss"}, "k2 or k3 with kl_placement loss"),
        ({"kl_coef": 0.0, "adaptive_kl": {}}, "would stay at 0"),
        ({"adaptive_kl": {"horizon": 63}}, r"at least that of one step \(64\)"),
    ],
)
def test_kl_settings_that_contradict_each_other(settings: dict[str, Any], text: str) -> None:
    with pytest.raises(ValidationError, match=text):
        config(**settings)
