from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from workers.algorithms.base import MicroBatch
from workers.algorithms.rloo import loss, prepare
from workers.config import RlooConfig
from workers.types import ScoredBatch

MakeScored = Callable[..., ScoredBatch]
MicroBatchOf = Callable[..., MicroBatch]


def config(**settings: Any) -> RlooConfig:
    return RlooConfig.model_validate({"type": "rloo", **settings})


def test_the_baseline_is_the_mean_of_the_others(scored: MakeScored) -> None:
    # 1 − (0 + 2)/2, 0 − (1 + 2)/2, 2 − (1 + 0)/2; and a group of equal rewards, with advantages 0.
    given = scored([[2, 1, 1], [1, 2]], rewards=[1, 0, 2, 5, 5], logprobs=[0] * 7)
    batch, metrics = prepare(given, config(beta=0))
    assert batch.advantages is not None
    assert batch.advantages.tolist() == [0, 0, -1.5, 1.5, 0, 0, 0]
    assert batch.row_offsets.tolist() == [0, 3, 5]
    assert metrics["frac_reward_zero_std"] == 0.5


def test_kl_in_the_reward_by_hand(scored: MakeScored) -> None:
    # Σ k1 = (−1 − 2) − (−2 − 2) = 1 and (−3) − (−1) = −2; with β = ½ the rewards 1 0 become ½ and 1.
    given = scored([[2, 1]], rewards=[1, 0], logprobs=[-1, -2, -3], reference=[-2, -2, -1])
    batch, metrics = prepare(given, config(beta=0.5))
    assert batch.advantages is not None
    assert batch.advantages.tolist() == [-0.5, -0.5, 0.5]
    assert metrics["objective/non_score_reward"] == -0.5 * (1 - 2) / 2
    assert metrics["objective/rlhf_reward"] == 0.75


def test_normalised_advantages(scored: MakeScored) -> None:
    # Leave-one-out: −2 2, of deviation √8 over n − 1.
    given = scored([[1, 1]], rewards=[1, 3], logprobs=[0, 0])
    batch, _ = prepare(given, config(beta=0, normalize_advantages=True))
    assert batch.advantages is not None
    assert batch.advantages.tolist() == pytest.approx([-2 / 8**0.5, 2 / 8**0.5], rel=1e-4)


def test_the_ratio_is_that_of_the_whole_completion(micro_batch: MicroBatchOf) -> None:
    # 2 · 0.55 = 1.1 is within 1 ± 0.2 though neither token is; 1.5 is cut to 1.2 and has no gradient.
    batch = micro_batch([[2, 1]], old_logprobs=[0, 0, 0], advantages=[1, 1, 1])
    logprobs = torch.tensor([2, 0.55, 1.5]).log().requires_grad_()
    value, stats = loss(logprobs, batch, config())
    value.backward()
    assert value.item() == pytest.approx(-(1.1 + 1.2) / 2)
    assert logprobs.grad is not None
    assert logprobs.grad.tolist() == pytest.approx([-1.1 / 2, -1.1 / 2, 0])
    assert stats["clip_ratio/high_mean"].item() == 0.5
    assert stats["clip_ratio/low_mean"].item() == 0


def test_gradient_against_finite_differences(micro_batch: MicroBatchOf) -> None:
    batch = micro_batch([[2, 3]], old_logprobs=[-1, -2, -1, -1, -2], advantages=[2, 2, -1, -1, -1])
    logprobs = torch.tensor([-1.02, -1.95, -1.01, -0.97, -2.03], dtype=torch.float64, requires_grad=True)
    torch.autograd.gradcheck(lambda x: loss(x, batch, config())[0], (logprobs,), atol=1e-4)
