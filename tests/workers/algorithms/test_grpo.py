from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from pydantic import ValidationError

from workers.algorithms.base import MicroBatch
from workers.algorithms.grpo import loss, prepare
from workers.config import GrpoConfig
from workers.types import Finish, ScoredBatch

MakeScored = Callable[..., ScoredBatch]
MicroBatchOf = Callable[..., MicroBatch]
LN2 = math.log(2)


def config(**settings: Any) -> GrpoConfig:
    return GrpoConfig.model_validate({"type": "grpo", **settings})


def test_prepare_spreads_the_advantage_over_the_completion(scored: MakeScored) -> None:
    given = scored([[2, 1], [1, 1]], rewards=[1, 0, 2, 2], logprobs=[-1, -2, -3, -4, -5])
    batch, _ = prepare(given, config(scale_rewards="none"))
    assert batch.advantages is not None
    assert batch.advantages.tolist() == [0.5, 0.5, -0.5, 0, 0]
    assert batch.old_logprobs is not None
    assert batch.old_logprobs.tolist() == [-1, -2, -3, -4, -5]
    assert batch.row_offsets.tolist() == [0, 2, 4]
    assert [prompt.tolist() for prompt in batch.prompts] == [[100], [101, 101]]


def test_kl_in_the_reward_is_taken_off_before_the_mean(scored: MakeScored) -> None:
    # Σ k1 = (−1 − 2) − (−2 − 2) = 1 and (−3) − (−1) = −2; with β = ½ the rewards 1 0 become ½ and 1, mean ¾.
    given = scored([[2, 1]], rewards=[1, 0], logprobs=[-1, -2, -3], reference=[-2, -2, -1])
    batch, metrics = prepare(given, config(beta=0.5, kl_placement="reward", scale_rewards="none"))
    assert batch.advantages is not None
    assert batch.advantages.tolist() == [-0.25, -0.25, 0.25]
    assert metrics["reward"] == 0.5
    assert metrics["objective/non_score_reward"] == -0.5 * (1 - 2) / 2
    assert metrics["objective/rlhf_reward"] == 0.75


def test_masked_completions_count_in_the_mean_only(scored: MakeScored) -> None:
    stop, length = Finish.stop, Finish.length
    given = scored(
        [[2, 1], [1, 3], [1, 1]],
        rewards=[1, 0, 5, 5, 4, 8],
        logprobs=[-1, -2, -3, -4, -5, -6, -7, -8, -9],
        reference=[0, 1, 2, 3, 4, 5, 6, 7, 8],
        finish=[stop, length, length, length, stop, stop],
    )
    batch, _ = prepare(given, config(beta=0.1, scale_rewards="none", mask_truncated_completions=True))
    assert batch.sources is not None
    assert batch.sources.tolist() == [0, 4, 5]
    assert batch.row_offsets.tolist() == [0, 1, 3]  # nothing is left of the second group
    assert [prompt.tolist() for prompt in batch.prompts] == [[100], [102, 102, 102]]
    assert batch.advantages is not None
    assert batch.advantages.tolist() == [0.5, 0.5, -2, 2]
    assert batch.old_logprobs is not None
    assert batch.old_logprobs.tolist() == [-1, -2, -8, -9]
    assert batch.reference_logprobs is not None
    assert batch.reference_logprobs.tolist() == [0, 1, 7, 8]


def test_all_masked_is_a_batch_without_rows(scored: MakeScored) -> None:
    given = scored([[1, 1]], rewards=[1, 0], logprobs=[-1, -1], finish=[Finish.length] * 2)
    batch, metrics = prepare(given, config(mask_truncated_completions=True))
    assert batch.num_rows == 0
    assert config().num_updates(batch.num_rows) == 0
    assert metrics["completions/clipped_ratio"] == 1


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"loss_type": "dapo"}, (-2 + 1 * 3) / 4),  # all four tokens alike
        ({"loss_type": "grpo"}, (-2 + 1) / 2),  # both completions alike
        ({"loss_type": "dr_grpo", "fixed_length": 8}, (-2 + 1 * 3) / (2 * 8)),
    ],
)
def test_loss_types_by_hand(settings: dict[str, Any], expected: float, micro_batch: MicroBatchOf) -> None:
    # On policy a token costs −A: a completion of one token with A = 2, one of three tokens with A = −1.
    batch = micro_batch([[1, 3]], old_logprobs=[-1] * 4, advantages=[2, -1, -1, -1])
    value, stats = loss(torch.full((4,), -1.0), batch, config(**settings))
    assert value.item() == pytest.approx(expected)
    assert stats["loss"].item() == pytest.approx(expected)
    assert "kl" not in stats


def test_clipping_by_hand(micro_batch: MicroBatchOf) -> None:
    # Bounds 0.8 and 1.4. Only 1.5 with A > 0 and 0.5 with A < 0 are cut; 1.3 is not, as epsilon_high is 0.4.
    batch = micro_batch([[5]], old_logprobs=[0] * 5, advantages=[1, 1, -1, 1, -1])
    logprobs = torch.tensor([1.5, 1.3, 1.5, 0.5, 0.5]).log().requires_grad_()
    value, stats = loss(logprobs, batch, config(epsilon=0.2, epsilon_high=0.4))
    value.backward()
    assert value.item() == pytest.approx((-1.4 - 1.3 + 1.5 - 0.5 + 0.8) / 5)
    assert logprobs.grad is not None
    assert logprobs.grad.tolist() == pytest.approx([0, -1.3 / 5, 1.5 / 5, -0.5 / 5, 0])
    assert stats["clip_ratio/high_mean"].item() == pytest.approx(1 / 5)
    assert stats["clip_ratio/low_mean"].item() == pytest.approx(1 / 5)
    assert stats["clip_ratio/region_mean"].item() == pytest.approx(2 / 5)


def test_k3_in_the_loss_by_hand(micro_batch: MicroBatchOf) -> None:
    # π_ref/π = ½ at the first token and 1 at the second: k3 = −½ + log 2 and 0, slope 1 − π_ref/π = ½ and 0.
    batch = micro_batch([[2]], old_logprobs=[-1, -1], reference_logprobs=[-1 - LN2, -1], advantages=[0, 0])
    logprobs = torch.tensor([-1.0, -1.0], requires_grad=True)
    value, stats = loss(logprobs, batch, config(beta=3.0))
    value.backward()
    assert stats["kl"].item() == pytest.approx((LN2 - 0.5) / 2)
    assert value.item() == pytest.approx(3 * (LN2 - 0.5) / 2)
    assert logprobs.grad is not None
    assert logprobs.grad.tolist() == pytest.approx([3 * 0.5 / 2, 0])


def test_kl_in_the_reward_is_not_in_the_loss(micro_batch: MicroBatchOf) -> None:
    batch = micro_batch([[1]], old_logprobs=[-1], reference_logprobs=[-1 - LN2], advantages=[0])
    value, stats = loss(torch.tensor([-1.0]), batch, config(beta=3.0, kl_placement="reward"))
    assert value.item() == 0
    assert stats["kl"].item() == pytest.approx(LN2 - 0.5)


@pytest.mark.parametrize("settings", [{"loss_type": "dr_grpo"}, {"loss_type": "dapo", "fixed_length": 8}])
def test_fixed_length_goes_with_dr_grpo(settings: dict[str, Any]) -> None:
    with pytest.raises(ValidationError, match="fixed_length goes with loss_type dr_grpo"):
        config(**settings)


# ------------------------------------------------------------------------------------------------ variants by setting


def test_the_ratio_of_a_sequence_by_hand(micro_batch: MicroBatchOf) -> None:
    # √(1.21 · 1) = 1.1 is within 1 ± 0.2, though 1.21 is not; and half of its gradient is each token's.
    batch = micro_batch([[2]], old_logprobs=[0, 0], advantages=[1, 1])
    logprobs = torch.tensor([1.21, 1]).log().requires_grad_()
    value, stats = loss(logprobs, batch, config(loss_type="grpo", importance_sampling_level="sequence"))
    value.backward()
    assert value.item() == pytest.approx(-1.1)
    assert logprobs.grad is not None
    assert logprobs.grad.tolist() == pytest.approx([-1.1 / 2, -1.1 / 2])
    assert stats["clip_ratio/region_mean"].item() == 0


def test_delta_bounds_what_a_negative_advantage_leaves_free(micro_batch: MicroBatchOf) -> None:
    batch = micro_batch([[2]], old_logprobs=[0, 0], advantages=[-1, -1])
    logprobs = torch.tensor([5, 3.0]).log().requires_grad_()
    value, _ = loss(logprobs, batch, config(delta=4.0))
    value.backward()
    assert value.item() == pytest.approx((4 + 3) / 2)
    assert logprobs.grad is not None
    assert logprobs.grad.tolist() == pytest.approx([0, 3 / 2])


def test_cispo_cuts_the_weight_and_keeps_the_gradient(micro_batch: MicroBatchOf) -> None:
    # Ratios 3, cut to 2, and ½: −2 · 1 · log π and −½ · −1 · log π.
    batch = micro_batch([[2]], old_logprobs=[-2, -2], advantages=[1, -1])
    logprobs = (torch.tensor([3, 0.5]).log() - 2).requires_grad_()
    value, stats = loss(logprobs, batch, config(loss_type="cispo", epsilon_high=2.0))
    value.backward()
    assert value.item() == pytest.approx((-2 * (math.log(3) - 2) + 0.5 * (math.log(0.5) - 2)) / 2)
    assert logprobs.grad is not None
    assert logprobs.grad.tolist() == pytest.approx([-2 / 2, 0.5 / 2])
    assert stats["clip_ratio/high_mean"].item() == 0.5


def test_overlong_completions_by_hand(scored: MakeScored) -> None:
    # Of 10 tokens the last 4 cost: 6 nothing, 8 a half, 10 and 12 one. Mean of the penalties −2.5/4.
    given = scored([[6, 8, 10, 12]], rewards=[1, 1, 1, 1], logprobs=[0] * 36)
    batch, metrics = prepare(given, config(overlong_buffer=4, overlong_length=10, scale_rewards="none"))
    assert metrics["objective/overlong_penalty"] == -0.625
    assert metrics["reward"] == 1
    assert batch.advantages is not None
    assert batch.advantages[[0, 6, 14, 24]].tolist() == [0.625, 0.125, -0.375, -0.375]


def test_groups_of_equal_rewards_are_left_out(scored: MakeScored) -> None:
    given = scored([[1, 2], [1, 1], [1, 1]], rewards=[0.1, 0.1, 1, 0, 1, 1], logprobs=[0] * 7)
    batch, metrics = prepare(given, config(dynamic_sampling=True))
    assert batch.sources is not None
    assert batch.sources.tolist() == [2, 3]
    assert metrics["sampling/kept_groups"] == pytest.approx(1 / 3)
    nothing, _ = prepare(scored([[1, 1]], rewards=[1, 1], logprobs=[0, 0]), config(dynamic_sampling=True))
    assert nothing.num_rows == 0


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        ({"loss_type": "cispo"}, "set epsilon_high"),
        ({"loss_type": "cispo", "epsilon_high": 5.0, "delta": 7.0}, "leave delta out"),
        ({"delta": 1.2}, "set it above 1 \\+ epsilon_high"),
        ({"overlong_buffer": 4}, "or neither"),
        ({"overlong_buffer": 4, "overlong_length": 3}, "at most overlong_length"),
    ],
)
def test_settings_that_contradict_each_other(settings: dict[str, Any], text: str) -> None:
    with pytest.raises(ValidationError, match=text):
        config(**settings)
