"""Soft labels from the scorers' results to the gradient: steps of a learner rank on an engine of plain torch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from methods import COMMON, REWARDS, scored
from torch_engine import learner_of

from workers.stats import StepStats
from workers.types import Scores

DPO = {"type": "dpo", "pairs": {"duplicates": "keep", "truncated_chosen": True}, **COMMON}
UNIT = np.float32(REWARDS)


def step(
    model: Path, by_scorer: dict[str, Any], *, rewards: Any = UNIT, budget: int = 10_000, **settings: Any
) -> tuple[StepStats, torch.Tensor]:
    algorithm = {**DPO, **settings}
    sampled, _, reference, values = scored(algorithm)
    learner, engine = learner_of(model, algorithm, budget=budget)
    stats = learner.step(0, sampled, [Scores(rewards=rewards, by_scorer=by_scorer)], reference, values)
    return stats, engine.gradients[0]


def test_votes_of_the_scorers_are_the_labels(qwen2: Path) -> None:
    hard, _ = step(qwen2, {})
    reverse, _ = step(qwen2, {}, rewards=-UNIT)  # the same pairs, the other way round
    agreed, _ = step(qwen2, {"a": UNIT, "b": UNIT}, soft_labels="votes")
    divided, _ = step(qwen2, {"a": UNIT, "b": -UNIT}, soft_labels="votes")
    assert hard.sums["loss"] != pytest.approx(reverse.sums["loss"], rel=1e-3)
    assert agreed.sums["loss"] == pytest.approx(hard.sums["loss"], rel=1e-6)
    assert divided.sums["loss"] == pytest.approx((hard.sums["loss"] + reverse.sums["loss"]) / 2, rel=1e-5)


@pytest.mark.parametrize("loss_type", ["sigmoid", "sppo"])
def test_labels_stay_with_their_completions_in_micro_batches(qwen2: Path, loss_type: str) -> None:
    settings = {"loss_type": loss_type, "soft_labels": "margin"}
    whole, at_once = step(qwen2, {}, **settings)
    parts, added = step(qwen2, {}, budget=1, **settings)
    torch.testing.assert_close(added, at_once, atol=1e-5, rtol=1e-4)
    assert parts.sums["loss"] == pytest.approx(whole.sums["loss"], rel=1e-5)
