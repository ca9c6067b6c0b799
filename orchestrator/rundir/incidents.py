"""What went wrong in a run, and what was done about it: one line of JSON each in `incidents.jsonl`, over all attempts.

It is for people, and for `rlhf why`. What is done, the ledger says.
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
    """Example: `Incident(attempt=1, step=3, what="rollout rank 1 failed: its process (pid 4711) died",
    action="restarted", role="rollout", rank=1, pid=4711, log="logs/attempt-1/rollout-1.log", time=1.7e9)`.
    """

    attempt: int
    step: int  # turns committed before
    what: str  # one line
    action: Action
    role: str = ""  # empty: no worker's
    rank: int | None = None
    pid: int | None = None
    log: str = ""  # of the worker, in the run directory
    detail: str = ""  # what was done, where the action does not say it all
    time: float = 0.0  # Unix seconds, for people


def of_restart(restart: Restart, *, attempt: int, step: int) -> Incident:
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
    """Which process an attempt ended by, for exit.json; `pid` is None where it is not known, or was the driver's."""
    if isinstance(error, WorkerFailed):
        log = worker_log(attempt, error.role, error.rank)
        return {"role": error.role, "rank": error.rank, "pid": error.pid, "log": log}
    return {"role": "cluster" if isinstance(error, ClusterLost) else "driver", "rank": None, "pid": None, "log": ""}


def worker_log(attempt: int, role: str, rank: int) -> str:
    """In the run directory."""
    return f"logs/attempt-{attempt}/{role}-{rank}.log"


def write_incident(path: Path, incident: Incident) -> None:
    line = json.dumps({**asdict(incident), "time": round(time.time(), 3)})
    with path.open("a", encoding="utf-8") as file:
        file.write(redact(line) + "\n")


def read_incidents(path: Path) -> list[Incident]:
    """Oldest first; lines that are not whole are left out."""
    known, found = {f.name for f in fields(Incident)}, []
    for line in path.read_text("utf-8").splitlines() if path.exists() else ():
        try:
            body = json.loads(line)
            found.append(Incident(**{name: body[name] for name in known & set(body)}))
        except (ValueError, TypeError):
            continue
    return found
