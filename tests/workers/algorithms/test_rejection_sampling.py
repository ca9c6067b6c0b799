from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from pydantic import ValidationError

from workers.algorithms.rejection_sampling import best, prepare
from workers.config import RejectionSamplingConfig
from workers.ragged import Ragged
from workers.types import ScoredBatch

OFFSETS = np.array([0, 4, 6])
COMPLETIONS = Ragged.of([[5], [6, 1], [6, 1], [7], [6, 1], [8]])  # 1 and 2 are the same; so is 4, of another prompt
REWARDS = np.float32([0.0, 3.0, 3.0, 2.0, 1.0, 0.5])


def config(**settings: Any) -> RejectionSamplingConfig:
    return RejectionSamplingConfig(type="rejection_sampling", **settings)


def kept(*, keep_best: int = 2, min_reward: float | None = None, distinct: bool = True, seed: int = 0) -> list[int]:
    found = best(
        REWARDS, COMPLETIONS, OFFSETS, keep_best=keep_best, min_reward=min_reward, distinct=distinct, seed=seed
    )
    return found.tolist()


def test_the_best_of_each_group_and_equal_ones_once() -> None:
    assert {tuple(kept(seed=seed)) for seed in range(20)} == {(1, 3, 4, 5), (2, 3, 4, 5)}
    assert {tuple(kept(seed=seed, distinct=False)) for seed in range(20)} == {(1, 2, 4, 5), (2, 1, 4, 5)}
    assert kept(keep_best=3)[1:] == [3, 0, 4, 5]  # a group has no more completions


def test_the_threshold_may_be_reached_and_may_leave_nothing() -> None:
    assert {tuple(kept(min_reward=2.0, seed=seed)) for seed in range(20)} == {(1, 3), (2, 3)}
    assert kept(min_reward=3.5) == []


def test_one_row_for_each_that_is_kept(scored: Callable[..., ScoredBatch]) -> None:
    given = scored([[2, 3, 1], [1, 1], [4]], rewards=[0.0, 2.5, 1.0, 0.0, 0.5, -1.0], logprobs=[-1.0] * 12)
    batch, metrics = prepare(given, config(keep_best=2, min_reward=0.5))
    assert [completion.tolist() for completion in batch.completions] == [[1, 1, 1], [2], [4]]
    assert [prompt.tolist() for prompt in batch.prompts] == [[100], [100], [101, 101]]
    assert batch.row_offsets.tolist() == [0, 1, 2, 3]
    assert batch.sources is not None
    assert batch.sources.tolist() == [1, 2, 4]
    found = {name: value for name, value in metrics.items() if name.startswith("rejection/")}
    assert found == pytest.approx(
        {
            "rejection/count": 3,
            "rejection/kept": 3 / 6,
            "rejection/empty_groups": 1 / 3,
            "rejection/reward": (2.5 + 1 + 0.5) / 3,
        }
    )
    assert metrics["reward"] == pytest.approx(3 / 6)  # of all that were sampled: 0 + 2.5 + 1 + 0 + 0.5 − 1


def test_a_step_may_keep_nothing(scored: Callable[..., ScoredBatch]) -> None:
    given = scored([[2, 3], [1]], rewards=[0.0, 0.0, 0.0], logprobs=[-1.0] * 6)
    settings = config(min_reward=1.0)
    batch, metrics = prepare(given, settings)
    assert (batch.num_rows, len(batch.completions), settings.num_updates(batch.num_rows)) == (0, 0, 0)
    assert (metrics["rejection/kept"], metrics["rejection/empty_groups"]) == (0, 1)
    assert "rejection/reward" not in metrics


def test_adding_to_all_rewards_changes_nothing_without_a_threshold(scored: Callable[..., ScoredBatch]) -> None:
    given = scored([[2, 3, 1], [1, 1]], rewards=[0.0, 2.5, 1.0, 0.0, 0.5], logprobs=[-1.0] * 8)
    assert given.rewards is not None
    moved = replace(given, rewards=given.rewards + 7)
    assert prepare(moved, config())[0].sources is not None
    assert np.array_equal(prepare(moved, config())[0].sources, prepare(given, config())[0].sources)


def test_updates_are_of_so_many_completions() -> None:
    assert [config(batch_size=4).num_updates(rows) for rows in (0, 1, 4, 5)] == [0, 1, 1, 2]


def test_no_more_can_be_kept_than_is_sampled() -> None:
    with pytest.raises(ValidationError, match="at most num_generations"):
        config(num_generations=2, keep_best=3)
