"""Incidents of a run: one line of JSON in `incidents.jsonl` for each failure and the action that followed.

The file covers all attempts. It is for people and for `rlhf why`; the state of the run is in the ledger alone.
"""

from __future__ import annotations

import json
import time
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Literal

from orchestrator.cluster.base import Restart
from orchestrator.errors import ClusterLost, WorkerFailed, redact

Action = Literal["restarted", "attempt ended", "next attempt", "gave up"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Incident:
    """One failure and the action that followed.

    Example: `Incident(attempt=1, step=3, what="rollout rank 1 failed: its process (pid 4711) died",
    action="restarted", role="rollout", rank=1, pid=4711, log="logs/attempt-1/rollout-1.log", time=1.7e9)`.
    """

    attempt: int
    step: int  # steps committed before it
    what: str  # one line
    action: Action
    role: str = ""  # empty: not the failure of a worker
    rank: int | None = None
    pid: int | None = None
    log: str = ""  # the worker's log file, relative to the run directory
    detail: str = ""  # more about the action
    time: float = 0.0  # Unix seconds, for people


def restart_incident(restart: Restart, *, attempt: int, step: int) -> Incident:
    """Return the incident of a worker that was restarted in place."""
    return Incident(
        attempt=attempt,
        step=step,
        what=restart.why,
        action="restarted",
        role=restart.role,
        rank=restart.rank,
        pid=restart.pid,
        log=worker_log(attempt, restart.role, restart.rank),
        detail=f"{restart.number} of {restart.limit}, during `{restart.method}`",
    )


def first_cause(error: BaseException, *, attempt: int) -> dict[str, Any]:
    """Return `first_cause` of exit.json: the process whose failure ended the attempt.

    `pid` is None if it is unknown or the driver's.
    """
    if isinstance(error, WorkerFailed):
        log = worker_log(attempt, error.role, error.rank)
        return {"role": error.role, "rank": error.rank, "pid": error.pid, "log": log}
    return {"role": "cluster" if isinstance(error, ClusterLost) else "driver", "rank": None, "pid": None, "log": ""}


def worker_log(attempt: int, role: str, rank: int) -> str:
    """Return the path of a worker's log file, relative to the run directory."""
    return f"logs/attempt-{attempt}/{role}-{rank}.log"


def write_incident(path: Path, incident: Incident) -> None:
    """Append an incident, stamped with the current time."""
    line = json.dumps({**asdict(incident), "time": round(time.time(), 3)})
    with path.open("a", encoding="utf-8") as file:
        file.write(redact(line) + "\n")


def read_incidents(path: Path) -> list[Incident]:
    """Return the incidents, oldest first, skipping lines that are incomplete."""
    names, incidents = {f.name for f in fields(Incident)}, []
    for line in path.read_text("utf-8").splitlines() if path.exists() else ():
        try:
            body = json.loads(line)
            incidents.append(Incident(**{name: body[name] for name in names & set(body)}))
        except (ValueError, TypeError):
            continue
    return incidents
