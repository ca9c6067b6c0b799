from __future__ import annotations

import math
from collections.abc import Callable

import pytest

from workers.algorithms.metrics import rollout_metrics
from workers.types import Evidence, Finish

EvidenceOf = Callable[..., Evidence]


def test_all_figures_by_hand(evidence: EvidenceOf) -> None:
    given = evidence(
        [[1, 3], [2, 4]],
        rewards=[0, 2, 5, 5],
        logprobs=[-1, -1, -1, -1, -2, -2, -1, -1, -1, -1],
        reference=[-2, -1, -1, -2, -2, -2, -1, -1, -1, -3],
        finish=[Finish.stop, Finish.length, Finish.stop, Finish.aborted],
    )
    assert rollout_metrics(given) == pytest.approx(
        {
            "reward": 3.0,
            "reward_std": (math.sqrt(2) + 0) / 2,
            "frac_reward_zero_std": 0.5,
            "objective/scores": 3.0,
            "objective/kl": (1 + 1 + 0 + 2) / 4,
            "objective/entropy": (1 + 3 + 4 + 4) / 4,
            "num_tokens": 2 * 1 + 2 * 2 + 10,
            "completions/mean_length": 2.5,
            "completions/min_length": 1,
            "completions/max_length": 4,
            "completions/mean_terminated_length": 1.5,
            "completions/min_terminated_length": 1,
            "completions/max_terminated_length": 2,
            "completions/clipped_ratio": 0.5,
        }
    )


def test_figures_that_do_not_exist_are_left_out(evidence: EvidenceOf) -> None:
    metrics = rollout_metrics(evidence([[1], [1]], rewards=[0, 2], logprobs=[-1, -1], finish=[Finish.length] * 2))
    absent = {"reward_std", "frac_reward_zero_std", "objective/kl", "completions/mean_terminated_length"}
    assert not absent & metrics.keys()


def test_groups_of_one_do_not_count_as_constant(evidence: EvidenceOf) -> None:
    metrics = rollout_metrics(evidence([[1], [1, 1]], rewards=[0, 1, 3], logprobs=[-1, -1, -1]))
    assert metrics["frac_reward_zero_std"] == 0
    assert metrics["reward_std"] == pytest.approx(math.sqrt(2))
