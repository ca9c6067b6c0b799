from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from pydantic import ValidationError

from workers.algorithms.base import MicroBatch
from workers.algorithms.reinforce import loss, prepare
from workers.config import ReinforceConfig
from workers.types import ScoredBatch

MakeScored = Callable[..., ScoredBatch]
MicroBatchOf = Callable[..., MicroBatch]


def config(**settings: Any) -> ReinforceConfig:
    return ReinforceConfig.model_validate({"type": "reinforce++", **settings})


def test_discounted_returns_by_hand(scored: MakeScored) -> None:
    # k1 = 0.5 −1 0, with β = ½ the token rewards are −0.25, 0.5 + 1, 3; at γ = ½ the returns 0.5, 1.5, 3.
    # Mean 5/3. Deviations −7/6 −1/6 8/6, squares add up to 114/36, variance 57/36.
    given = scored([[2], [1]], rewards=[1, 3], logprobs=[-1, -2, -0.5], reference=[-1.5, -1, -0.5])
    batch, metrics = prepare(given, config(beta=0.5, gamma=0.5))
    assert batch.advantages is not None
    root = math.sqrt(57)
    assert batch.advantages.tolist() == pytest.approx([-7 / root, -1 / root, 8 / root])
    assert metrics["reward"] == 2
    assert metrics["objective/non_score_reward"] == -0.5 * -0.25


def test_the_groups_mean_is_taken_off_the_score(scored: MakeScored) -> None:
    # Groups at 0 ± 1 and 10 ± 1 are alike: ±1, of variance 4/3 over n − 1. Without the mean the second group wins.
    given = scored([[1, 1], [1, 1]], rewards=[-1, 1, 9, 11], logprobs=[0] * 4)
    batch, metrics = prepare(given, config(beta=0, baseline="group"))
    assert batch.advantages is not None
    one = math.sqrt(3 / 4)
    assert batch.advantages.tolist() == pytest.approx([-one, one, -one, one])
    assert metrics["reward"] == 5
    alone, _ = prepare(given, config(beta=0))
    assert alone.advantages is not None
    assert (alone.advantages > 0).tolist() == [False, False, True, True]


@pytest.mark.parametrize("baseline", ["none", "group"])
def test_equal_rewards_teach_nothing(scored: MakeScored, baseline: str) -> None:
    given = scored([[2, 1], [1, 1]], rewards=[3] * 4, logprobs=[-1] * 5, reference=[-1] * 5)
    batch, _ = prepare(given, config(baseline=baseline))
    assert batch.advantages is not None
    assert batch.advantages.tolist() == [0] * 5


def test_clipping_by_hand(micro_batch: MicroBatchOf) -> None:
    # 1.5 is cut to 1.2 where A > 0, 0.5 to 0.8 where A < 0.
    batch = micro_batch([[2, 1]], old_logprobs=[0] * 3, advantages=[1, -1, -1])
    logprobs = torch.tensor([1.5, 1.5, 0.5]).log().requires_grad_()
    value, stats = loss(logprobs, batch, config())
    value.backward()
    assert value.item() == pytest.approx((-1.2 + 1.5 + 0.8) / 3)
    assert logprobs.grad is not None
    assert logprobs.grad.tolist() == pytest.approx([0, 1.5 / 3, 0])
    assert stats["clip_ratio/region_mean"].item() == pytest.approx(2 / 3)


def test_a_group_of_one_has_no_baseline() -> None:
    with pytest.raises(ValidationError, match="baseline group needs num_generations of 2"):
        config(baseline="group", num_generations=1)
