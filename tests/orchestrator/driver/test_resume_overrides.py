"""Overrides on resume: hardware may change, settings of training may not."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from orchestrator.config import RunConfig
from orchestrator.driver.resume_overrides import MAY_CHANGE, apply_overrides, record_overrides
from orchestrator.errors import BadInput, ResumeError
from orchestrator.rundir.directory import RunDirectory


@pytest.fixture
def directory(tmp_path: Path) -> RunDirectory:
    body = {
        "name": "a",
        "output_dir": str(tmp_path),
        "model": {"path": "m"},
        "data": {"prompts": "prompts.jsonl"},
        "algorithm": {"type": "grpo", "prompts_per_step": 2, "max_steps": 3},
        "reward": [{"type": "math"}],
        "policy": {"num_ranks": 2},
    }
    return RunDirectory.create(RunConfig.model_validate_json(json.dumps(body)), "")


def test_hardware_may_change_and_is_recorded(directory: RunDirectory) -> None:
    new = apply_overrides(directory, ["policy.num_ranks=1", "checkpoint.keep=5"])
    assert (new.policy.num_ranks, new.checkpoint.keep) == (1, 5)
    assert directory.config().policy.num_ranks == 2  # nothing is written before the attempt holds the lock
    assert record_overrides(directory, new) == {"checkpoint.keep": 5, "policy.num_ranks": 1}
    assert directory.config() == new
    assert record_overrides(directory, new) == {}


def test_settings_that_affect_training_may_not_change(directory: RunDirectory) -> None:
    with pytest.raises(ResumeError) as caught:
        apply_overrides(directory, ["algorithm.learning_rate=0.5", "seed=3", "policy.num_ranks=1"])
    assert [problem.what for problem in caught.value.problems] == [
        "algorithm.learning_rate was 1e-06 and would be 0.5",
        "seed was 0 and would be 3",
    ]
    assert "policy.num_ranks" in caught.value.problems[0].fix


def test_a_misspelt_override_is_named(directory: RunDirectory) -> None:
    with pytest.raises(BadInput, match="num_rank"):
        apply_overrides(directory, ["policy.num_rank=1"])


def test_every_key_that_may_change_exists() -> None:
    from orchestrator.config.key_index import all_keys

    keys = set(all_keys())
    assert [key for key in MAY_CHANGE if key not in keys and not any(k.startswith(f"{key}.") for k in keys)] == []
