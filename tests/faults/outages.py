"""What is lost all at once, or only for a while: gangs, machines, replies, heads of clusters, room of any kind.

Each is a run of `kills.configuration` on a stage, struck when its ledger has so many records; in the end it is to be
what the run is that nobody struck.
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
CPUS_OF_FOUR = 16  # of six members four fit on the head of a stage, the others need 32 CPUs elsewhere
ELSEWHERE = {"rollout", "reward"}  # the roles of the last two: of engine 1, and of the reward worker


def configuration(task: Path, name: str, **cluster: Any) -> RunConfig:
    whole = kills.configuration(task, task / name, ALGORITHM)
    algorithm = whole.algorithm.model_copy(update={"max_steps": STEPS})
    return whole.model_copy(update={"algorithm": algorithm, "cluster": ClusterConfig.model_validate(cluster)})


def undisturbed(stage: Stage, task: Path) -> Any:
    """What the run comes to when nothing is lost."""
    config = configuration(task, "undisturbed")
    goes_on(stage, config)
    return cpu_run.outcome(task / "undisturbed" / config.name)


def goes_on(stage: Stage, config: RunConfig) -> None:
    """One life more, to the end."""
    attempt = stage.attempt(config)
    assert attempt.ended(ATTEMPT_S), "it hangs"
    assert attempt.status == 0, told(attempt)
    assert stage.clean(attempt), "an actor was left behind"


def reach(attempt: Attempt, facts: int) -> None:
    """Until its ledger has that many records."""
    assert eventually(lambda: attempt.ended() or len(attempt.records) >= facts, ATTEMPT_S), "it never came to that"
    assert not attempt.ended(), f"it ended before: {told(attempt)}"


def strike(stage: Stage, attempt: Attempt, members: Sequence[Member], *, but_not: Sequence[int] = ()) -> list[int]:
    """SIGKILL to all of these at once, when all are there, as processes other than `but_not`. Returns their ids."""
    pids: list[int] = []

    def found() -> bool:
        there = stage.members(attempt)
        pids[:] = [pid for member in members if (pid := there.get(member, 0)) not in (0, *but_not)]
        return len(pids) == len(members) or attempt.ended()

    assert eventually(found, ATTEMPT_S), "they are never there together"
    for pid in pids:
        os.kill(pid, signal.SIGKILL)
    return pids


def ended(stage: Stage, attempt: Attempt) -> dict[str, Any]:
    """What exit.json says of a life that ends by itself and leaves nobody behind."""
    assert attempt.ended(ATTEMPT_S), "it hangs"
    assert stage.clean(attempt), "an actor was left behind"
    found: dict[str, Any] = json.loads((attempt.directory / "exit.json").read_text())
    return found


def incidents(attempt: Attempt) -> list[Incident]:
    return read_incidents(attempt.directory / "incidents.jsonl")


def is_as_if_nothing_had_happened(attempt: Attempt, expected: Any) -> None:
    found = account(read_ledger(attempt.directory / "ledger.jsonl")[0])
    assert found.lost == found.repeated == ()
    assert cpu_run.outcome(attempt.directory) == expected


def told(attempt: Attempt) -> str:
    return f"{attempt.status} {attempt.cause}: {(attempt.directory.parent / 'output.log').read_text()[-2000:]}"
