"""Reward from several scorers: sum and minimum, and normalisation within groups, with the arithmetic written out."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fakes import experience

from workers.algorithms.metrics import rollout_metrics
from workers.config import FunctionRewardConfig, ModelConfig
from workers.reward import Reward
from workers.rewards.combine import Combination, combined, normalized
from workers.step_inputs import scored_batch
from workers.types import Experience, merge_scores

NAN = float("nan")
SCORES = np.float32([[1, 2, NAN, NAN], [3, -1, 4, NAN], [-9, -9, -9, -9]])
WEIGHTS = np.float32([1, 0.5, 0])

FUNCTIONS = """
def length(completions, **_):
    return [100.0 * len(c) for c in completions]

def letters(completions, **_):
    return [float(c.count('b')) for c in completions]
"""


def test_a_sum_leaves_out_what_abstains() -> None:
    assert combined(SCORES, WEIGHTS, "sum").tolist() == [2.5, 1.5, 2, 0]


def test_a_minimum_is_of_the_scorers_with_a_weight() -> None:
    assert combined(SCORES, WEIGHTS, "min").tolist() == [1, -0.5, 2, 0]


def test_scores_are_normalised_within_their_group() -> None:
    # The second group of the first scorer has one score, the second scorer's first group is constant.
    scores = np.float32([[1, 3, 5, NAN], [7, 7, 0, 1]])
    expected = [[-1 / 2**0.5, 1 / 2**0.5, 0, NAN], [0, 0, -1 / 2**0.5, 1 / 2**0.5]]
    assert normalized(scores, np.array([0, 2, 4])) == pytest.approx(np.array(expected), rel=2e-4, nan_ok=True)


def test_an_empty_share_of_groups_is_normalised() -> None:
    assert normalized(np.zeros((2, 0), np.float32), np.array([0])).shape == (2, 0)


# ------------------------------------------------------------------------------------------------ in the reward worker


def worker(model: Path, directory: Path, **settings: Any) -> Reward:
    (directory / "mine.py").write_text(FUNCTIONS)
    configs = [
        FunctionRewardConfig(type="function", function=f"{directory}/mine.py:{name}") for name in ("length", "letters")
    ]
    combination = Combination(**settings)
    policy = ModelConfig(path=str(model))
    return Reward(policy, configs, index=0, num_workers=1, num_samples=1, combination=combination)


def sampled() -> Experience:
    # aaa, bb and a: of a length of 300, 200 and 100, with 0, 2 and 0 times b.
    return experience([([3], [[3, 3, 3, 1], [4, 4, 1], [3, 1]])], logprobs=[-1.0] * 9)


def test_without_normalisation_the_scorer_of_the_larger_scale_decides(qwen2: Path, tmp_path: Path) -> None:
    given = sampled()
    scores = worker(qwen2, tmp_path).score([given])
    assert scores.rewards.tolist() == [300, 202, 100]
    scaled = worker(qwen2, tmp_path, normalize=True).score([given])
    assert scaled.rewards.tolist() == [300, 202, 100]  # what is reported and evaluated stays as it is
    third = 1 / 3**0.5
    assert scaled.normalized is not None
    assert scaled.normalized.tolist() == pytest.approx([1 - third, 2 * third, -1 - third], rel=1e-3)
    assert int(np.argmax(scaled.normalized)) == 1


def test_the_worst_case_of_an_ensemble(qwen2: Path, tmp_path: Path) -> None:
    scores = worker(qwen2, tmp_path, combine="min").score([sampled()])
    assert scores.rewards.tolist() == [0, 2, 0]


def test_training_reads_the_normalised_rewards_and_metrics_the_others(qwen2: Path, tmp_path: Path) -> None:
    given = sampled()
    scores = worker(qwen2, tmp_path, normalize=True).score([given])
    merged = merge_scores([scores, scores])
    assert merged.normalized is not None
    assert scores.normalized is not None
    assert merged.normalized.tolist() == scores.normalized.tolist() * 2
    batch = scored_batch([given], [scores], None, None, None, seed=0)
    assert batch.rewards is not None
    assert batch.rewards.tolist() == scores.normalized.tolist()
    assert batch.weights == merged.weights == {"length": 1.0, "letters": 1.0}
    metrics = rollout_metrics(batch)
    assert metrics["reward"] == metrics["objective/scores"] == pytest.approx((300 + 202 + 100) / 3)
    assert metrics["reward_std"] == pytest.approx(scores.normalized.std(ddof=1), rel=1e-5)
