"""Outages, some of them temporary: whole gangs, machines, replies, heads of clusters, memory and disk space.

Each fault hits a run of `configuration` when its ledger has a given number of records. The outcome must equal that of
the undisturbed run.
"""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import cpu_run
import kills
from kills import ATTEMPT_S
from stage import Attempt, Member, Stage, eventually

from orchestrator.config import ClusterConfig, RunConfig
from orchestrator.rundir.incidents import Incident, read_incidents
from orchestrator.rundir.ledger import account, read_ledger

ALGORITHM, STEPS = "grpo", 6
CPUS_OF_FOUR = 16  # four of the six members fit on the head node of a stage; the others need 32 CPUs elsewhere
ON_SECOND_NODE = {"rollout", "reward"}  # the roles of those others: engine 1 and the reward worker


def configuration(task: Path, name: str, **cluster: Any) -> RunConfig:
    whole = kills.configuration(task, task / name, ALGORITHM)
    algorithm = whole.algorithm.model_copy(update={"max_steps": STEPS})
    return whole.model_copy(update={"algorithm": algorithm, "cluster": ClusterConfig.model_validate(cluster)})


def undisturbed(stage: Stage, task: Path) -> Any:
    """Return the outcome of the run without a fault."""
    config = configuration(task, "undisturbed")
    run_to_end(stage, config)
    return cpu_run.outcome(task / "undisturbed" / config.name)


def run_to_end(stage: Stage, config: RunConfig) -> None:
    """Run one more attempt, to the end of the run."""
    attempt = stage.attempt(config)
    assert attempt.ended(ATTEMPT_S), "the attempt hangs"
    assert attempt.status == 0, describe(attempt)
    assert stage.clean(attempt), "an actor was left behind"


def reach(attempt: Attempt, facts: int) -> None:
    """Wait until the ledger of an attempt has `facts` records."""
    assert eventually(lambda: attempt.ended() or len(attempt.records) >= facts, ATTEMPT_S), (
        "the ledger never had that many records"
    )
    assert not attempt.ended(), f"the attempt ended before: {describe(attempt)}"


def kill_all(
    stage: Stage, attempt: Attempt, members: Sequence[Member], *, except_pids: Sequence[int] = ()
) -> list[int]:
    """Send SIGKILL to all `members` at once and return their process ids.

    The signal is sent when every member is alive, in a process other than those of `except_pids`.
    """
    pids: list[int] = []

    def found() -> bool:
        alive = stage.members(attempt)
        pids[:] = [pid for member in members if (pid := alive.get(member, 0)) not in (0, *except_pids)]
        return len(pids) == len(members) or attempt.ended()

    assert eventually(found, ATTEMPT_S), "they were never all alive"
    for pid in pids:
        os.kill(pid, signal.SIGKILL)
    return pids


def ended(stage: Stage, attempt: Attempt) -> dict[str, Any]:
    """Wait for an attempt that ends by itself and leaves no actor behind, and return its exit.json."""
    assert attempt.ended(ATTEMPT_S), "the attempt hangs"
    assert stage.clean(attempt), "an actor was left behind"
    found: dict[str, Any] = json.loads((attempt.directory / "exit.json").read_text())
    return found


def incidents(attempt: Attempt) -> list[Incident]:
    return read_incidents(attempt.directory / "incidents.jsonl")


def assert_undisturbed(attempt: Attempt, expected: Any) -> None:
    found = account(read_ledger(attempt.directory / "ledger.jsonl")[0])
    assert found.lost == found.repeated == ()
    assert cpu_run.outcome(attempt.directory) == expected


def describe(attempt: Attempt) -> str:
    return f"{attempt.status} {attempt.cause}: {(attempt.directory.parent / 'output.log').read_text()[-2000:]}"
