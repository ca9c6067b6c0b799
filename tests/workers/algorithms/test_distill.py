"""Distillation: the batch of a step, and the loss of a token."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from workers.algorithms.base import MicroBatch
from workers.algorithms.distill import loss, prepare
from workers.config import DistillConfig
from workers.ragged import Ragged
from workers.types import ScoredBatch, TokenShard, assemble_vectors

DIVERGENCE = DistillConfig(type="distill")
GRADIENT = DistillConfig(type="distill", objective="policy_gradient", beta=1.0)


def test_the_loss_is_the_mean_divergence_of_the_updates_tokens(micro_batch: Callable[..., MicroBatch]) -> None:
    value, stats = loss(torch.tensor([0.5, 1.0, 0.0]), micro_batch([[2], [1]]), DIVERGENCE)
    assert value.item() == pytest.approx(0.5)
    assert stats["divergence"].item() == stats["loss"].item() == pytest.approx(0.5)


def test_the_advantage_of_a_sampled_token_is_the_log_ratio_of_teacher_to_policy(
    scored: Callable[..., ScoredBatch],
) -> None:
    # The teacher: ½ and ¼. The policy when it sampled: ¼ and ½. Advantages log 2 and −log 2.
    half, quarter = math.log(1 / 2), math.log(1 / 4)
    batch, metrics = prepare(scored([[2]], logprobs=[quarter, half], reference=[half, quarter]), GRADIENT)
    assert batch.advantages is not None
    assert batch.advantages.tolist() == pytest.approx([math.log(2), -math.log(2)])
    assert metrics["objective/kl"] == pytest.approx(0.0)
    assert "reward" not in metrics  # nothing scored it


def test_the_policy_gradient_is_clipped(micro_batch: Callable[..., MicroBatch]) -> None:
    # Ratios 1.1, 1.5 and 0.5 with advantages 1, 1 and −1: the second is cut at 1.2, the third at 0.8.
    given = micro_batch([[3]], old_logprobs=[0.0] * 3, advantages=[1.0, 1.0, -1.0])
    logprobs = torch.tensor([1.1, 1.5, 0.5]).log().requires_grad_()
    value, stats = loss(logprobs, given, GRADIENT)
    assert value.item() == pytest.approx((-1.1 - 1.2 + 0.8) / 3)
    value.backward()
    assert logprobs.grad is not None
    assert logprobs.grad.tolist() == pytest.approx([-1.1 / 3, 0, 0])
    assert stats["clip_ratio/region_mean"].item() == pytest.approx(2 / 3)
    assert stats["divergence"].item() == pytest.approx(-1 / 3)


@pytest.mark.parametrize("sampled", [True, False], ids=["samples", "dataset"])
def test_whole_distributions_come_from_samples_and_from_a_dataset(
    scored: Callable[..., ScoredBatch], sampled: bool
) -> None:
    hidden = [[float(token), 0.5] for token in range(6)]
    given = scored([[2, 1], [3]], logprobs=[-1.0] * 6 if sampled else None, hidden=hidden)
    batch, metrics = prepare(given, DIVERGENCE)
    assert batch.row_offsets.tolist() == [0, 2, 3]
    assert batch.reference_hidden is not None
    assert batch.reference_hidden.take(np.array([4, 0])).tolist() == [[4, 0.5], [0, 0.5]]
    assert metrics["num_tokens"] == 6 + 1 + 1 + 2  # each completion with its prompt: of 1, 1 and 2 tokens
    assert ("completions/mean_length" in metrics) == sampled


def test_vectors_of_several_ranks_are_found_where_they_lie() -> None:
    completions = Ragged.of([[1, 1], [2], [3, 3, 3]])
    shares = [
        TokenShard(completions=np.array([2, 0]), values=np.array([[20], [21], [22], [0], [1]], np.float32)),
        TokenShard(completions=np.zeros(0, np.int64), values=np.zeros(0, np.float32)),  # a rank that had no row
        TokenShard(completions=np.array([1]), values=np.array([[10]], np.float32)),
    ]
    vectors = assemble_vectors(shares, completions)
    assert vectors.take(np.arange(6)).tolist() == [[0], [1], [10], [20], [21], [22]]
    assert vectors.take(np.array([3, 2, 3])).tolist() == [[20], [10], [20]]
    with pytest.raises(ValueError, match="1 of 6 tokens have no vector"):
        assemble_vectors(shares[:2], completions)


def test_bits_of_bfloat16_become_numbers_again(micro_batch: Callable[..., MicroBatch]) -> None:
    states = torch.tensor([[1.5, -2.0], [0.25, 3.0]], dtype=torch.bfloat16)
    share = TokenShard(completions=np.array([0]), values=states.view(torch.uint16).numpy())
    vectors = assemble_vectors([share], Ragged.of([[1, 2]]))
    given: Any = micro_batch([[2]], reference_hidden=vectors)
    assert torch.equal(given.reference_hidden, states)
