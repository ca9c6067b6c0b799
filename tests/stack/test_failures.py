"""Failures of workers, and plans that do not fit: errors name the role, and recoverable failures change no result."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import attempts
import pytest
from attempts import Run
from processes import Command, eventually

from orchestrator.cluster.ray_cluster import RayCluster
from orchestrator.errors import FleetExhausted, PlacementError, WorkerFailed
from orchestrator.pipeline.roles import gang_plans
from orchestrator.rundir.incidents import read_incidents

GPUS = {"policy": 2, "critic": 1, "reference": 1, "rollout": 1}  # in ppo.yaml

pytestmark = [pytest.mark.stack, pytest.mark.usefixtures("head")]

Finished = Callable[..., Run]


def test_a_reward_function_that_raises_ends_the_run_with_its_own_traceback(qwen2: Path) -> None:
    failure, run = fail("raises_on_its_second_batch", qwen2)
    assert (failure.role, failure.rank) == ("reward", 0)
    for words in ("in raises_on_its_second_batch", "ZeroDivisionError: division by zero", "scorers.py"):
        assert words in failure.traceback
        assert words in run.exit["message"]
    assert "COMMITTED 1" in run.facts
    assert "COMMITTED 2" not in run.facts


def test_a_batch_that_kills_every_worker_ends_the_run(qwen2: Path) -> None:
    failure, run = fail("is_killed_by_every_batch_but_the_first", qwen2, cause="fleet_exhausted")
    assert isinstance(failure, FleetExhausted)
    assert (failure.role, failure.rank, failure.method, failure.restarts) == ("reward", 0, "score", 1)
    assert "reward rank 0 failed: its process (pid" in run.exit["message"]
    assert "the same call of `score` failed 2 times" in run.exit["message"]
    first_cause = {"role": "reward", "rank": 0, "pid": failure.pid, "log": "logs/attempt-1/reward-0.log"}
    assert run.exit["first_cause"] == first_cause
    assert [(i.role, i.action) for i in read_incidents(run.path / "incidents.jsonl")] == [("reward", "restarted")]


@pytest.mark.long
def test_workers_that_are_killed_one_after_the_other_change_nothing(finished: Finished, qwen2: Path) -> None:
    whole, run = finished("drifting", qwen2), Run(qwen2 / "runs" / "killed")
    kills = [(1, "rollout-0"), (2, "reference-0"), (3, "reward-0")]
    killed_pids: list[int] = []
    with ThreadPoolExecutor(1) as executor:
        done = executor.submit(lambda: [killed_pids.append(kill_worker(run, after, worker)) for after, worker in kills])
        attempts.run("drifting", qwen2, "name=killed")
        done.result(timeout=1)
    # Only the last row is checked: a kill may come after the next step has begun, and is then counted in a later row.
    assert run.metrics[-1]["restarts/rollout"] == run.metrics[-1]["restarts/reward"] == 1
    assert without_restarts(run) == whole.metrics_without_clocks
    assert run.weights_digest == whole.weights_digest
    assert run.facts == whole.facts
    incidents = read_incidents(run.path / "incidents.jsonl")
    assert [(i.role, i.action) for i in incidents] == [(worker[:-2], "restarted") for _, worker in kills]
    assert [i.pid for i in incidents] == killed_pids


@pytest.mark.long
def test_a_learner_that_is_killed_ends_the_attempt_and_the_next_one_the_run(finished: Finished, qwen2: Path) -> None:
    whole, run = finished("base", qwen2), Run(qwen2 / "runs" / "killed-learner")
    with Command(
        "run", str(attempts.RECIPES / "base.yaml"), "name=killed-learner", "--attempts", "3", cwd=qwen2
    ) as command:
        pid = kill_worker(run, 7, "policy-1")  # one step after a checkpoint
        assert command.exit_code() == 0, command.output
        assert command.leaves_nothing_behind()
    assert f"policy rank 1 failed: its process (pid {pid}) died" in command.output
    assert "attempt 1 of 3 ended (worker_failed); 2 attempts left: starting attempt 2 of 3" in command.output
    assert (run.exit["cause"], run.exit["attempt"]) == ("completed", 2)
    assert "ATTEMPT 6" in run.facts
    assert run.metrics_without_clocks == whole.metrics_without_clocks
    assert run.weights_digest == whole.weights_digest
    (incident,) = read_incidents(run.path / "incidents.jsonl")
    assert (incident.attempt, incident.action) == (1, "next attempt")
    assert f"pid {pid}" in incident.what


def kill_worker(run: Run, after: int, worker: str) -> int:
    """Kill the process that writes the log of `worker` once step `after` is committed, and return its pid."""
    assert eventually(lambda: run.path.joinpath("ledger.jsonl").exists(), within_s=200)
    assert eventually(lambda: f"COMMITTED {after}" in run.facts, within_s=200)
    log = str(run.path / "logs" / "attempt-1" / f"{worker}.log")
    (pid,) = (int(p.name) for p in Path("/proc").iterdir() if p.name.isdigit() and writes(p, log))
    os.kill(pid, signal.SIGKILL)
    return pid


def writes(process: Path, log: str) -> bool:
    """Return whether a process is the actor that writes a log, rather than a process that the actor started."""
    try:
        is_actor = (process / "cmdline").read_bytes().startswith(b"ray::")
        return is_actor and str((process / "fd" / "1").readlink()) == log
    except OSError:
        return False


def without_restarts(run: Run) -> list[dict[str, Any]]:
    return [{k: v for k, v in row.items() if not k.startswith("restarts/")} for row in run.metrics_without_clocks]


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
    shortfalls = [(s.role, s.resource, s.asked, s.available) for s in refused.value.shortfalls]
    assert shortfalls == [
        ("policy", "GPU", 2, 0),
        ("critic", "GPU", 1, 0),
        ("reference", "GPU", 1, 0),
        ("rollout", "GPU", 1, 0),
    ]
    assert "policy asks for 2 GPU, 0 left for it" in str(refused.value)


def fail(scorer: str, family: Path, cause: str = "worker_failed") -> tuple[WorkerFailed, Run]:
    run = Run(family / "runs" / scorer)
    reward = f'reward=[{{type: function, function: "scorers.py:{scorer}"}}]'
    with pytest.raises(WorkerFailed) as failed:
        attempts.run("grpo", family, f"name={scorer}", reward, "cluster.restarts_per_role=1")
    seconds = time.time() - (run.path / "checkpoints" / "step-1" / "manifest.json").stat().st_mtime
    assert seconds < 30, "a deadline of half an hour is not what ended it"
    assert (run.exit["cause"], run.exit["exit_code"], run.exit["step"]) == (cause, 4, 1)
    assert run.exit["resume"] == f"rlhf resume {run.path.relative_to(family)}"
    return failed.value, run
