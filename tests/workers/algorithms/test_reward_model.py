from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch

from workers.algorithms.base import MicroBatch
from workers.algorithms.reward_model import final_scores, loss, prepare
from workers.config import RewardModelConfig
from workers.types import ScoredBatch

LN2, LN3 = math.log(2), math.log(3)


def config(**settings: Any) -> RewardModelConfig:
    return RewardModelConfig(type="reward_model", **settings)


def test_best_and_worst_of_each_group_make_a_row(scored: Callable[..., ScoredBatch]) -> None:
    # Of the first group 1 is best and 0 worst; the second is a tie and gives no pair.
    batch, metrics = prepare(scored([[2, 3, 1], [1, 1]], rewards=[0.0, 2.5, 1.0, 4.0, 4.0]), config())
    assert [completion.tolist() for completion in batch.completions] == [[1, 1, 1], [0, 0]]
    assert [prompt.tolist() for prompt in batch.prompts] == [[100]]
    assert batch.row_offsets.tolist() == [0, 2]
    assert batch.margins is not None
    assert batch.margins.tolist() == [2.5]
    assert metrics == {"num_tokens": 3 * 1 + 6 + 2 * 2 + 2, "pairs/count": 1}


def test_only_the_last_token_of_a_completion_counts(micro_batch: Callable[..., MicroBatch]) -> None:
    # Last tokens: log 3 and 0 of the first pair, 0 and log 3 of the second: σ(log 3) = ¾, σ(−log 3) = ¼.
    scores = torch.tensor([9.0, LN3, 0.0, 0.0, 9.0, 9.0, LN3], requires_grad=True)
    batch = micro_batch([[2, 1], [1, 3]], margins=[1.0, 1.0])
    assert final_scores(scores, batch).tolist() == pytest.approx([LN3, 0, 0, LN3])
    value, stats = loss(scores, batch, config())
    assert value.item() == pytest.approx((-math.log(3 / 4) - math.log(1 / 4)) / 2)
    assert {name: x.item() for name, x in stats.items()} == pytest.approx(
        {"loss": value.item(), "accuracy": 0.5, "margin": 0, "mean_reward": LN3 / 2}, abs=1e-6
    )
    value.backward()  # d −log σ(d) / d r_c = −(1 − σ(d)), over two pairs
    assert scores.grad is not None
    assert scores.grad.tolist() == pytest.approx([0, -1 / 8, 1 / 8, -3 / 8, 0, 0, 3 / 8])


def test_equal_scores_cost_log_2(micro_batch: Callable[..., MicroBatch]) -> None:
    value, stats = loss(torch.full((2,), 0.7), micro_batch([[1, 1]], margins=[1.0]), config())
    assert value.item() == pytest.approx(LN2)
    assert stats["accuracy"].item() == 0


def test_centring_and_margin(micro_batch: Callable[..., MicroBatch]) -> None:
    # −log σ(2 − 1 − ½·2) = log 2, and 0.1 · (2 + 1)² = 0.9.
    value, stats = loss(
        torch.tensor([2.0, 1.0]),
        micro_batch([[1, 1]], margins=[2.0]),
        config(center_rewards_coefficient=0.1, margin_weight=0.5),
    )
    assert value.item() == pytest.approx(LN2 + 0.9)
    assert stats["margin"].item() == 1  # the difference of the scores, not the margin of the batch


def test_the_gradient_is_that_of_finite_differences(micro_batch: Callable[..., MicroBatch]) -> None:
    batch = micro_batch([[2, 3], [1, 2]], margins=[0.5, 2.0])
    settings = config(center_rewards_coefficient=0.3, margin_weight=0.7)
    scores = torch.linspace(-1, 2, 8, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: loss(x, batch, settings)[0], (scores,))


def test_single_completions_are_refused(micro_batch: Callable[..., MicroBatch]) -> None:
    with pytest.raises(AssertionError, match="chosen and a rejected"):
        loss(torch.zeros(2), micro_batch([[1], [1]], margins=[1.0, 1.0]), config())


def test_votes_are_labels(scored: Callable[..., ScoredBatch], micro_batch: Callable[..., MicroBatch]) -> None:
    made = scored([[1, 1], [1, 1]], rewards=[1, 0, 1, 0])
    first, second = made.experience.prompts
    prompts = (replace(first, columns={"votes": {"for": 3, "against": 1, "tie": 0}}), second)
    rows = replace(made, experience=replace(made.experience, prompts=prompts))
    batch, _ = prepare(rows, config())
    assert batch.soft_labels is not None
    assert batch.soft_labels.tolist() == [0.75, 0.25, 1, 0]
    assert prepare(rows, config(soft_labels="hard"))[0].soft_labels is None

    # −¾ log σ(log 3) − ¼ log σ(−log 3) = −¾ log ¾ − ¼ log ¼, which is least where σ(d) is the share of the votes.
    scores = torch.tensor([LN3, 0.0], requires_grad=True)
    value, _ = loss(scores, micro_batch([[1, 1]], margins=[1.0], soft_labels=[0.75, 0.25]), config())
    assert value.item() == pytest.approx(-(3 * math.log(3 / 4) + math.log(1 / 4)) / 4)
    value.backward()
    assert scores.grad is not None
    assert scores.grad.tolist() == pytest.approx([0, 0], abs=1e-6)
