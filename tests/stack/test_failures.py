"""What goes wrong in a worker, or does not fit the cluster, is said in the words of who it happened to."""

from __future__ import annotations

import time
from pathlib import Path

import attempts
import pytest
from attempts import Run

from orchestrator.cluster.ray_cluster import RayCluster
from orchestrator.errors import PlacementError, WorkerFailed
from orchestrator.run.roles import gang_plans

GPUS = {"policy": 2, "critic": 1, "reference": 1, "rollout": 1}  # of ppo.yaml

pytestmark = [pytest.mark.stack, pytest.mark.usefixtures("head")]


def test_a_reward_function_that_raises_ends_the_run_with_its_own_traceback(qwen2: Path) -> None:
    failure, run = fail("raises_on_its_second_batch", qwen2)
    assert (failure.role, failure.rank) == ("reward", 0)
    for words in ("in raises_on_its_second_batch", "ZeroDivisionError: division by zero", "scorers.py"):
        assert words in failure.traceback
        assert words in run.exit["message"]
    assert "COMMITTED 1" in run.facts
    assert "COMMITTED 2" not in run.facts


def test_a_worker_that_is_killed_ends_the_run(qwen2: Path) -> None:
    failure, run = fail("is_killed_on_its_second_batch", qwen2)
    assert (failure.role, failure.rank) == ("reward", 0)
    assert "reward rank 0 failed: its process (pid" in run.exit["message"]


def test_a_plan_that_asks_for_more_gpus_than_there_are_names_the_roles(
    qwen2: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(qwen2)
    config = attempts.recipe("ppo").stages[1]
    cluster = RayCluster(config.cluster)
    try:
        with pytest.raises(PlacementError) as refused:
            cluster.spawn(gang_plans(config, cuda=True, max_steps=1))
    finally:
        cluster.shutdown()
    asked = [(s.role, s.resource, s.asked, s.available) for s in refused.value.shortfalls]
    assert asked == [
        ("policy", "GPU", 2, 0),
        ("critic", "GPU", 1, 0),
        ("reference", "GPU", 1, 0),
        ("rollout", "GPU", 1, 0),
    ]
    assert "policy asks for 2 GPU, 0 left for it" in str(refused.value)


def fail(scorer: str, family: Path) -> tuple[WorkerFailed, Run]:
    run = Run(family / "runs" / scorer)
    with pytest.raises(WorkerFailed) as failed:
        attempts.run("grpo", family, f"name={scorer}", f'reward=[{{type: function, function: "scorers.py:{scorer}"}}]')
    seconds = time.time() - (run.path / "checkpoints" / "step-1" / "manifest.json").stat().st_mtime
    assert seconds < 30, "a deadline of half an hour is not what ended it"
    assert (run.exit["cause"], run.exit["exit_code"], run.exit["step"]) == ("worker_failed", 4, 1)
    assert run.exit["resume"] == f"rlhf resume {run.path.relative_to(family)}"
    return failed.value, run
