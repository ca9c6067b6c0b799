"""Rewards that do not arrive, or that differ when they are requested again.

No score is invented, and no recorded score is replaced.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import cpu_run
import letter_reward_service
import numpy as np
import pytest
import run_in_process
from injection import Disk
from run_in_process import World
from safetensors.numpy import load_file

from orchestrator.config import RunConfig
from orchestrator.rundir.ledger import Fact, Record, read_ledger
from workers.rewards.base import RewardError

HERE = Path(__file__).parent
grpo = pytest.mark.parametrize("world", ["grpo"], indirect=True)


def config(world: World, name: str, function: str, **limits: Any) -> RunConfig:
    reward = [{"type": "function", "function": function, **limits}]
    checkpoint = {"every": world.every, "keep": 2}
    return cpu_run.config(world.root, world.root / name, world.algorithm, reward=reward, checkpoint=checkpoint)


def records(run: Path, fact: Fact) -> list[Record]:
    return [record for record in read_ledger(run / "ledger.jsonl")[0] if record.fact == fact]


@grpo
def test_a_service_that_does_not_answer_holds_the_step(world: World, tmp_path: Path) -> None:
    settings = config(world, "mute", f"{HERE}/letter_reward_service.py:letters_a", timeout_s=4.0)
    run = world.root / "mute" / "run"
    with letter_reward_service.service(tmp_path / "released", answers=2):
        with pytest.raises(RewardError, match="reward letters_a did not answer within timeout_s = 4"):
            cpu_run.run(settings)
        assert [record.step for record in records(run, Fact.scored)] == [1, 1], "two chunks"
        assert [row["step"] for row in cpu_run.rows(run)] == [1]
        (tmp_path / "released").touch()
        cpu_run.run(settings)
    assert cpu_run.outcome(run) == world.expected


@grpo
def test_the_first_score_that_was_recorded_counts(world: World) -> None:
    """Kill a run between SCORED and TRAINED. The next attempt must train on the recorded scores."""
    settings, run = config(world, "random", f"{HERE}/letter_reward.py:random_rewards"), world.root / "random" / "run"
    recorded = read_ledger(world.directory / "ledger.jsonl")[0]
    scored_index = max(i for i, record in enumerate(recorded) if (record.fact, record.step) == (Fact.scored, 2))
    appends = [i for i, line in enumerate(world.log) if line == "write run/ledger.jsonl"]

    def attempt(disk: Disk) -> None:
        disk.kill_at = appends[scored_index + 1]
        cpu_run.run(settings)

    assert run_in_process.run_attempt(world.root / "random", attempt) == -9
    assert read_ledger(run / "ledger.jsonl")[0][-1].fact == Fact.scored
    kept = [load_file(run / "rollouts" / "step-2" / f"chunk-{i}-reward-0.safetensors")["rewards"] for i in range(2)]
    cpu_run.run(settings)
    found = [record.details for record in records(run, Fact.scored) if record.step == 2]
    assert [details["recalled"] for details in found] == [False, False, True, True]
    assert [details["files"] for details in found[:2]] == [details["files"] for details in found[2:]]
    assert cpu_run.outcome(run)[1][1]["reward"] == pytest.approx(float(np.concatenate(kept).mean()), rel=1e-5)
