"""Turns of the jobs of one Ray cluster: by priority, then by time of submission. No job passes one that goes first.

    rlhf run ──► waits at the door ──► imports, checks ──► asks Ray for places ──► looks again ──► starts workers
                    ▲   │                                          ▲                     │
                    └───┘ a job ahead has no places yet            └─ gives them back ◄──┘ a job ahead has none

Ray runs every submitted job at once and keeps no queue. A driver therefore reads the jobs and the placement groups of
the cluster over HTTP, and waits while a job ahead of it has no places. Only the first one that waits asks Ray for
places, so it alone imports Ray. The second look is needed for a job that is between two stages of its recipe: its
places were free for a moment, but it has kept its turn.

Nobody is counted where nobody can be asked: drivers that connect by themselves are no jobs, and a cluster without a
dashboard has none. A job that is ahead and hangs before it asks for places holds up the others, which name it: nobody
can tell a job that hangs from one that reads its data, and only a person may take its turn away, with `rlhf stop`.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import requests

from orchestrator.cluster.job_server import Server
from orchestrator.errors import BadInput, ClusterError, Problem

PREFIX = "rlhf-"
"""First letters of the id of every job that takes part."""

RUN = "rlhf_run"
PRIORITY = "rlhf_priority"
DIRECTORIES = "rlhf_directories"
"""Keys of a job's metadata: name of the run; whole number, higher goes first; JSON list of its run directories."""

JOB_SERVER = "RLHF_JOB_SERVER"
"""Variable with the address of the job server, for the processes that a job starts."""

JOB_CONFIG = "RAY_JOB_CONFIG_JSON_ENV_VAR"
"""Variable that Ray sets for the driver of a submitted job: JSON with its metadata."""

PAUSES_S = (1.0, 1.0, 2.0, 2.0, 5.0, 5.0, 10.0)
"""Seconds between two looks at the cluster; the last one is repeated."""

TICK_S = 1.0  # between two calls of `on_wait`, which may end the wait
PATIENCE_S = 60.0  # with a job server that does not answer, before nobody is counted
TIMEOUT_S = 10.0
GROUPS = "/api/v0/placement_groups?limit=10000&filter_keys=state&filter_predicates=!%3D&filter_values=REMOVED"
SHOWN = 4
UNFINISHED = ("PENDING", "RUNNING")


@dataclass(frozen=True, kw_only=True, slots=True)
class WaitingJob:
    """Unfinished job of a cluster, with or without its places.

    Example: `WaitingJob(id="rlhf-arith-1a2b3c4d", submitted=1764000000.0)`.
    """

    id: str
    submitted: float  # Unix seconds
    priority: int = 0
    directories: frozenset[str] = frozenset()
    has_places: bool = False
    counts: bool = True  # False: a job of another program, which nobody waits for

    @property
    def rank(self) -> tuple[int, float, str]:
        """Key of the order: the lowest goes first."""
        return (-self.priority, self.submitted, self.id)


def ahead(jobs: Collection[WaitingJob], id: str, holding: str = "") -> list[str]:
    """Return the ids of the jobs that must get their places before job `id` may, in their order.

    Args:
        holding: run directory that job `id` holds the lock of. It then goes as early as the earliest job that needs
            this directory, too, and thus waits for job `id`. Else the two would wait for each other.
    """
    held = os.path.normpath(holding) if holding else None
    own = [job.rank for job in jobs if job.id == id or held in job.directories]
    if not own:
        return []
    first = [job for job in jobs if job.counts and not job.has_places and job.id != id and job.rank < min(own)]
    return [job.id for job in sorted(first, key=lambda job: job.rank)]


def group_name(id: str) -> str:
    """Return a name for a placement group of a job. A job may have several: those of the runs of a comparison."""
    return f"rlhf:{id}:{uuid.uuid4().hex[:8]}"


# ------------------------------------------------------------------------------------------------ the cluster


def read_jobs(server: Server, *, proxies: bool = True) -> list[WaitingJob]:
    """Return the unfinished jobs of a cluster. Raise ClusterError if it does not answer.

    `proxies`: go through those that the environment names. None stands between a job and the head of its own cluster.
    """
    with requests.Session() as session:
        session.trust_env = proxies
        jobs, listed = _get(session, server, "/api/jobs/"), _get(session, server, GROUPS)
    try:
        placed, pending = _placed(listed["data"]["result"]["result"])
        return [_job(job, placed - pending) for job in jobs if job["submission_id"] and job["status"] in UNFINISHED]
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        why = f"its answer is not the one of Ray's job server ({type(error).__name__}: {error})"
        raise ClusterError(Problem(what="cannot read the jobs", where=server.url, why=why)) from None


def describe(ids: Sequence[str]) -> str:
    """Return the line for a person that names the jobs ahead; empty if there are none."""
    more = f" and {len(ids) - SHOWN} more" if len(ids) > SHOWN else ""
    return f"waits for its turn; ahead of it: {', '.join(ids[:SHOWN])}{more}" if ids else ""


def _placed(groups: Iterable[Mapping[str, Any]]) -> tuple[set[str], set[str]]:
    """Return the ids of the jobs that have a placement group, and of those that wait for one."""
    placed, pending = set[str](), set[str]()
    for group in groups:
        kind, _, rest = str(group["name"]).partition(":")
        if kind == "rlhf":
            (placed if group["state"] == "CREATED" else pending).add(rest.rpartition(":")[0])
    return placed, pending


def _job(job: Mapping[str, Any], placed: set[str]) -> WaitingJob:
    id, metadata = job["submission_id"], job["metadata"] or {}
    return WaitingJob(
        id=id,
        submitted=(job["start_time"] or 0) / 1000,
        priority=_priority(metadata.get(PRIORITY, "0")),
        directories=_directories(metadata.get(DIRECTORIES, "[]")),
        has_places=id in placed,
        counts=id.startswith(PREFIX) or RUN in metadata,
    )


def _priority(text: str) -> int:
    """Return a job's priority. One that is not a whole number must not hold up the other jobs."""
    try:
        return int(text)
    except ValueError:
        return 0


def _directories(text: str) -> frozenset[str]:
    try:
        return frozenset(os.path.normpath(path) for path in json.loads(text))
    except (ValueError, TypeError):
        return frozenset()


def _get(session: requests.Session, server: Server, path: str) -> Any:
    try:
        answer = session.get(server.url + path, headers=dict(server.headers), timeout=TIMEOUT_S)
        answer.raise_for_status()
        return answer.json()
    except (requests.exceptions.RequestException, ValueError) as error:
        why = f"no answer from {path.partition('?')[0]} ({type(error).__name__})"
        fix = "is the cluster still up? check its address and your network"
        raise ClusterError(Problem(what="cannot read the jobs", where=server.url, why=why, fix=fix)) from None


# ------------------------------------------------------------------------------------------------ this job


class Turn:
    """Turn of the job that this process belongs to. A comparison and its runs are one job."""

    def __init__(
        self,
        id: str,
        read: Callable[[], Collection[WaitingJob]],
        *,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        """Set the job. `read` returns the unfinished jobs, or raises ClusterError."""
        self.id = id
        self._read, self._clock, self._sleep = read, clock, sleep
        self._newest: str | None = None  # what `waits_for` returned when the job server last answered; None: it has not
        self._silent_since: float | None = None

    @classmethod
    def of_this_job(cls) -> Turn | None:
        """Return the turn of this job; None if this process is no job, or nobody can be asked."""
        if (id := submission_id()) is None:
            return None
        if JOB_SERVER not in os.environ:
            os.environ[JOB_SERVER] = _find_job_server()
        try:
            server = Server.at(os.environ[JOB_SERVER]) if os.environ[JOB_SERVER] else None
        except BadInput:  # its token cannot be read: Ray itself would say so
            return None
        return None if server is None else cls(id, lambda: read_jobs(server, proxies=False))

    def waits_for(self, holding: str = "") -> str:
        """Return a line about the jobs that go first; empty if it is this job's turn.

        `holding`: see `ahead`. A job server that does not answer for PATIENCE_S holds up nobody.
        """
        try:
            jobs = self._read()
        except ClusterError:
            now = self._clock()
            self._silent_since = now if self._silent_since is None else self._silent_since
            if now - self._silent_since >= PATIENCE_S:
                return ""
            return "waits for the cluster's job server" if self._newest is None else self._newest
        self._silent_since = None
        self._newest = describe(ahead(jobs, self.id, holding))
        return self._newest

    def wait(self, on_wait: Callable[[str], None], holding: str = "") -> None:
        """Return when it is this job's turn.

        Args:
            on_wait: called about once a second with what the job waits for. It may raise, to end the wait.
            holding: see `ahead`.
        """
        wait_while(lambda: self.waits_for(holding), on_wait, self._sleep)


def wait_while(
    reason: Callable[[], str], on_wait: Callable[[str], None], sleep: Callable[[float], None] = time.sleep
) -> None:
    """Return when `reason` returns an empty text. Call `on_wait` with the text about once a second meanwhile."""
    looks = 0
    while text := reason():
        left_s, looks = PAUSES_S[min(looks, len(PAUSES_S) - 1)], looks + 1
        while left_s > 0:
            on_wait(text)
            sleep(min(TICK_S, left_s))
            left_s -= TICK_S


class Changes:
    """Function that passes on a line when it differs from the one before. An empty text is not passed on."""

    def __init__(self, say: Callable[[str], None]) -> None:
        self._say, self._newest = say, ""

    def __call__(self, text: str) -> None:
        before, self._newest = self._newest, text
        if text and text != before:
            self._say(text)


def submission_id() -> str | None:
    """Return the id of the job that this process belongs to; None if it is no submitted job."""
    try:
        metadata = json.loads(os.environ.get(JOB_CONFIG, "{}")).get("metadata") or {}
        return metadata.get("job_submission_id")
    except (ValueError, AttributeError):
        return None


def _find_job_server() -> str:
    """Return the address of this cluster's job server; empty if it has none.

    Only Ray knows the address, and a process that has imported Ray stays large: another process asks.
    """
    command = [sys.executable, "-P", "-m", "orchestrator.cluster.ray_job_server"]
    try:
        found = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE_S, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    lines = found.stdout.split()
    return lines[-1] if found.returncode == 0 and lines else ""
