"""Importance weights for the engine–learner mismatch, and the adaptive KL coefficient."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from workers.algorithms import grpo, ppo
from workers.algorithms.base import MicroBatch
from workers.algorithms.importance_sampling import importance_weights
from workers.algorithms.ppo import next_coefficient
from workers.config import AdaptiveKl, GrpoConfig, PpoConfig
from workers.types import ScoredBatch

MakeScored = Callable[..., ScoredBatch]
MicroBatchOf = Callable[..., MicroBatch]
ON = {"type": "grpo", "vllm_importance_sampling_correction": True}
TRUNCATE = {"vllm_importance_sampling_mode": "token_truncate", "vllm_importance_sampling_clip_max": 2.0}


def config(**settings: Any) -> GrpoConfig:
    return GrpoConfig.model_validate({**ON, **settings})


@pytest.fixture
def sampled(scored: MakeScored) -> ScoredBatch:
    """Return completions of 2 and 1 tokens whose probability ratios of learner to engine are 1.5, 2 and ½."""
    given = scored([[2, 1]], rewards=[1, 0], logprobs=[-2, -2, -2])
    return replace(given, learner_logprobs=np.log(np.array([1.5, 2, 0.5], np.float32)) - np.float32(2))


@pytest.mark.parametrize(
    ("mode", "cap", "expected"),
    [
        ("token_truncate", 1.8, [1.5, 1.8, 0.5]),
        ("token_mask", 1.8, [1.5, 0, 0.5]),
        ("sequence_truncate", 2.0, [2, 2, 0.5]),  # 1.5 · 2 = 3
        ("sequence_mask", 2.0, [0, 0, 0.5]),
        ("sequence_mask", 4.0, [3, 3, 0.5]),
    ],
)
def test_weights_by_hand(mode: str, cap: float, expected: list[float], sampled: ScoredBatch) -> None:
    settings = config(vllm_importance_sampling_mode=mode, vllm_importance_sampling_clip_max=cap)
    weights, metrics = importance_weights(sampled, settings)
    assert weights is not None
    assert weights.tolist() == pytest.approx(expected)
    name = "sampling/importance_sampling_ratio/"
    assert metrics[f"{name}min"] == pytest.approx(min(expected))
    assert metrics[f"{name}max"] == pytest.approx(max(expected))


def test_equal_models_have_weight_one(sampled: ScoredBatch) -> None:
    weights, metrics = importance_weights(replace(sampled, learner_logprobs=sampled.experience.logprobs), config())
    assert weights is not None
    assert weights.tolist() == [1, 1, 1]
    assert set(metrics.values()) == {1.0}


def test_a_ratio_beyond_any_float_is_capped(sampled: ScoredBatch) -> None:
    far = np.array([998, 0, 0], np.float32)
    weights, _ = importance_weights(replace(sampled, learner_logprobs=far), config(**TRUNCATE))
    assert weights is not None
    assert weights.tolist() == pytest.approx([2, 2, 2])


def test_the_learners_own_are_the_old_ones(sampled: ScoredBatch) -> None:
    batch, metrics = grpo.prepare(sampled, config(**TRUNCATE))
    np.testing.assert_array_equal(batch.old_logprobs, sampled.learner_logprobs)
    assert batch.importance_weights is not None
    assert batch.importance_weights.tolist() == pytest.approx([1.5, 2, 0.5])
    assert metrics["sampling/importance_sampling_ratio/mean"] == pytest.approx(4 / 3)
    without, _ = grpo.prepare(replace(sampled, learner_logprobs=None), GrpoConfig(type="grpo"))
    assert without.importance_weights is None
    assert without.old_logprobs is not None
    assert without.old_logprobs.tolist() == [-2, -2, -2]


def test_the_policys_loss_is_weighted_and_the_kl_is_not(micro_batch: MicroBatchOf) -> None:
    # On policy a token costs −A w: (−2 · 0.5 + 1 · 1.5 + k3)/2 with β = 1 and k3 = 0 and −½ + log 2.
    arrays = {"old_logprobs": [-1, -1], "advantages": [2, -1], "importance_weights": [0.5, 1.5]}
    batch = micro_batch([[1, 1]], **arrays, reference_logprobs=[-1, -1 - math.log(2)])
    value, _ = grpo.loss(torch.tensor([-1.0, -1.0]), batch, config(beta=1.0))
    assert value.item() == pytest.approx((-1 + 1.5 + math.log(2) - 0.5) / 2)


# ------------------------------------------------------------------------------------------------ the coefficient


@pytest.mark.parametrize(
    ("kl", "expected"),
    [
        (6.0, 0.1),
        (5.4, 0.1 * (1 - 0.1 * 100 / 1000)),
        (600.0, 0.1 * (1 + 0.2 * 100 / 1000)),
        (0.0, 0.1 * (1 - 0.2 * 100 / 1000)),
    ],
)
def test_the_coefficient_follows_the_kl(kl: float, expected: float) -> None:
    settings = AdaptiveKl(target=6.0, horizon=1000)
    assert next_coefficient(0.1, settings, kl=kl, num_completions=100) == pytest.approx(expected, rel=1e-12)


def test_ppos_coefficient_is_the_settings_own_or_the_controllers(scored: MakeScored) -> None:
    # Σ k1 = 1 and −2: a KL of −½ is as far below the target as counts.
    given = scored([[2], [1]], rewards=[1, 0], logprobs=[-1, -2, -3], reference=[-2, -2, -1], values=[0] * 3)
    still = PpoConfig(type="ppo", kl_coef=0.2, prompts_per_step=2)
    moving = still.model_copy(update={"adaptive_kl": AdaptiveKl(target=1.0, horizon=10)})
    assert ppo.next_kl_coef(given, still) == 0.2
    assert ppo.next_kl_coef(given, moving) == pytest.approx(0.2 * (1 - 0.2 * 2 / 10))
