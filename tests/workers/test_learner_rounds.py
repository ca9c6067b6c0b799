"""Rounds that differ, on one learner rank: settings of a round, and the weights that it starts from."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from methods import COMMON, scored
from torch_engine import TorchEngine, learner_of

from workers.spans import UpdateRange

DPO: dict[str, Any] = {"type": "dpo", "pairs": {}, "batch_size": 2, **COMMON}


def weights(engine: TorchEngine) -> torch.Tensor:
    return torch.cat([p.detach().flatten() for p in engine.module.parameters()])


def test_a_round_is_trained_as_if_its_settings_were_the_runs(qwen2: Path) -> None:
    learner, engine = learner_of(qwen2, DPO, max_steps=2)
    learner.begin_round({"learning_rate": 2e-3, "beta": 0.4, "num_iterations": 2})
    stats = learner.step(0, *scored(DPO))
    other = {**DPO, "learning_rate": 2e-3, "beta": 0.4, "num_iterations": 2}
    expected_learner, expected = learner_of(qwen2, other, max_steps=2)
    assert stats.sums == pytest.approx(expected_learner.step(0, *scored(DPO)).sums)
    assert engine.learning_rates == expected.learning_rates == [2e-3] * 4
    assert torch.equal(weights(engine), weights(expected))
    learner.begin_round({"learning_rate": 5e-4, "beta": 0.1, "num_iterations": 1})
    learner.step(1, *scored(DPO))
    assert engine.learning_rates[4:] == [5e-4] * 2


def test_a_round_from_the_base_forgets_the_rounds_before(qwen2: Path, tmp_path: Path) -> None:
    """Check also that the engine is compared with the policy that sampled, before the initial weights come back."""
    base, settings = str(tmp_path / "base"), {"reset_optimizer": True}
    learner, engine = learner_of(qwen2, DPO, max_steps=3)
    learner.save(base, {})
    learner.begin_round(settings, base)
    learner.step(0, *scored(DPO))
    after_one = weights(engine).clone()
    learner.begin_round(settings, base)
    sampled_by = learner.step(1, *scored(DPO)).sums["sampling/logp_difference"]
    fresh_learner, fresh = learner_of(qwen2, {**DPO, **settings}, max_steps=3)
    assert fresh_learner.step(1, *scored(DPO)).sums["sampling/logp_difference"] != pytest.approx(sampled_by)
    assert torch.equal(weights(engine), weights(fresh))
    assert not torch.equal(weights(engine), after_one)


def test_a_round_that_goes_on_after_a_pause_keeps_its_weights(qwen2: Path, tmp_path: Path) -> None:
    base, paused = str(tmp_path / "base"), str(tmp_path / "paused")
    learner, engine = learner_of(qwen2, DPO)
    learner.save(base, {})
    learner.begin_round({"reset_optimizer": True}, base)
    learner.step(0, *scored(DPO), span=UpdateRange(first=0, count=1))
    learner.save(paused, {})
    learner.more(0, UpdateRange(first=1))
    resumed_learner, resumed = learner_of(qwen2, DPO)
    resumed_learner.load(paused)
    resumed_learner.begin_round({"reset_optimizer": True}, base)
    resumed_learner.step(0, *scored(DPO), span=UpdateRange(first=1))
    assert torch.equal(weights(resumed), weights(engine))
