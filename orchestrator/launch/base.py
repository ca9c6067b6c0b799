"""Interface of a launcher: it starts jobs with one engine (this machine, Ray Jobs, KubeRay or Slurm) and shows them.

    recipe ──► JobRequest ──► Launcher.submit ──► engine ──► rlhf run ──► run directory
                                  │ find, list, logs, stop                      │
                                  └── execute ──► rlhf why | rounds | stop … ──►┘

An engine knows whether a job is queued, runs, or is gone. What the run did stands in its run directory, which only the
machines of the target may see: `execute` runs a command of `rlhf` there.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Protocol, TypeVar, runtime_checkable

from orchestrator.cluster import turn
from orchestrator.errors import BadInput, Problem

T = TypeVar("T")

PREFIX = turn.PREFIX
"""First letters of every id, in the engine as well."""


class JobState(StrEnum):
    """State of a job, as its engine shows it."""

    queued = "QUEUED"  # waits for its turn or for room
    starting = "STARTING"  # its machines are there, its driver has not begun an attempt
    running = "RUNNING"
    preempted = "PREEMPTED"  # lost its machines; the engine starts it again
    succeeded = "SUCCEEDED"
    failed = "FAILED"
    stopped = "STOPPED"  # a person or a program asked for it

    @property
    def is_finished(self) -> bool:
        return self in (JobState.succeeded, JobState.failed, JobState.stopped)


@dataclass(frozen=True, kw_only=True, slots=True)
class Package:
    """Files of a job: the recipe and what it names, copied to `root` in the places that they have there.

    Example: `Package(root=Path("/tmp/rlhf-ab12"), files={"recipe.yaml": "9f86…"}, bytes=1024, digest="1a2b3c4d…")`.
    """

    root: Path
    files: Mapping[str, str]  # path relative to `root` -> sha256
    bytes: int
    digest: str  # of names and contents


@dataclass(frozen=True, kw_only=True, slots=True)
class Pods:
    """Equal machines of a job. Example: `Pods(role="worker", count=8, gpus=8, cpus=96, memory_gib=1800)`."""

    role: str  # head or worker
    count: int
    gpus: int
    cpus: int
    memory_gib: int
    shm_gib: int = 0  # size of /dev/shm, part of the memory; 0: as the engine has it


@dataclass(frozen=True, kw_only=True, slots=True)
class JobRequest:
    """Job to submit. Example: `JobRequest(id="rlhf-arith-1a2b3c4d", run="arith", command=("rlhf", "run", "a.yaml"))`.

    `command` is started in the root of the package, on the target.
    """

    id: str
    run: str  # name of the run, of the last stage of a recipe, or of the comparison
    command: tuple[str, ...]
    package: Package | None = None  # None: the target has the files
    directories: tuple[str, ...] = ()  # run directory of each stage, absolute, as the target sees them
    pods: tuple[Pods, ...] = ()  # what it needs; empty: whatever the target has
    priority: int = 0  # higher goes first
    grace_s: float = 600.0  # for the update that runs and a checkpoint, after the job is asked to stop
    secrets: Mapping[str, str] = field(default_factory=dict)  # variable -> name of a file or secret of the target


@dataclass(frozen=True, kw_only=True, slots=True)
class Job:
    """Job of a target. Times are Unix seconds; None: not yet, or unknown to the engine."""

    id: str
    state: JobState
    run: str
    reason: str = ""  # one line: what it waits for, or why it ended
    directories: tuple[str, ...] = ()
    submitted: float | None = None
    started: float | None = None
    ended: float | None = None
    exit_code: int | None = None
    engine_state: str = ""  # the engine's own word


@dataclass(frozen=True, kw_only=True, slots=True)
class Submitted:
    """Result of a submission. `is_new` is False if the same job was submitted before and has not failed."""

    job: Job
    is_new: bool


@dataclass(frozen=True, kw_only=True, slots=True)
class Output:
    """Result of a command that was executed on a target."""

    exit_code: int
    stdout: str
    stderr: str = ""


class Launcher(Protocol):
    """Jobs of one target."""

    def submit(self, request: JobRequest) -> Submitted:
        """Start a job, or find the one that the same request started before.

        A job that failed or was stopped is started again.

        Raises:
            BadInput: the target cannot take the request.
            ClusterError: the engine refuses it, or does not answer.
        """
        ...

    def find(self, id: str) -> Job | None:
        """Return the job, or its newest repetition; None if the engine knows none of this id."""
        ...

    def list(self) -> Sequence[Job]:
        """Return the jobs of rlhf, newest first."""
        ...

    def logs(self, id: str, *, follow: bool = False) -> Iterator[str]:
        """Yield the output of the job's driver in pieces; with `follow`, as it grows, until the job ends."""
        ...

    def stop(self, id: str) -> None:
        """Ask the job to stop after the update that it is in, with a checkpoint. Return at once.

        A queued job is cancelled.
        """
        ...

    def execute(self, job: Job, arguments: Sequence[str]) -> Output:
        """Run `rlhf ARGUMENTS` on a machine of the target that sees the job's run directories, and wait for its end."""
        ...


@runtime_checkable
class Resumer(Protocol):
    """Launcher that can start a job again without its recipe at hand."""

    def resume(self, id: str, command: Sequence[str] | None = None) -> Submitted:
        """Start a job that has ended again, with the files that it had. `command`: in place of its own.

        Raises:
            BadInput: the engine knows no such job, or it has not ended or has succeeded.
            ClusterError: the engine refuses it, or does not answer.
        """
        ...


def refuse_to_stop(job: Job, where: str) -> None:
    """Raise BadInput if a job has ended, so that it cannot be stopped. `where`: the target, for the message."""
    if job.state.is_finished:
        what, why = f"job {job.id} cannot be stopped", f"it has ended: {job.state}"
        raise BadInput(Problem(what=what, where=where, why=why))


def refuse_to_resume(job: Job, where: str) -> None:
    """Raise BadInput if a job has not ended or has succeeded, so that it cannot be resumed. `where`: the target."""
    if not job.state.is_finished or job.state is JobState.succeeded:
        why = "it has succeeded" if job.state is JobState.succeeded else f"its state is {job.state}"
        raise BadInput(Problem(what=f"job {job.id} cannot be resumed", where=where, why=why))


def newest_repetition(id: str, find: Callable[[str], T | None]) -> T | None:
    """Return the newest of `ID`, `ID-2`, `ID-3`, …, each of which was started because the one before had failed.

    `find` returns what has an id, or None. None: nothing has the id itself.
    """
    found, number = find(id), 1
    while found is not None:
        number += 1
        later = find(f"{id}-{number}")
        if later is None:
            break
        found = later
    return found


EXIT_WORDS = {
    0: "done",
    1: "unexpected error",
    2: "bad input",
    3: "no cluster, or it is too small",
    4: "a worker failed",
    5: "an alarm ended the run",
    6: "another driver has taken over the run",
    130: "Ctrl-C",
    143: "asked to stop",
}
"""Meaning of the exit codes of `rlhf run`."""

STOPPED_CODES = (130, 143)
"""Exit codes of a run that was asked to stop."""


def ended_state(exit_code: int) -> JobState:
    """Return the state of a job whose command has ended with this code."""
    if exit_code == 0:
        return JobState.succeeded
    return JobState.stopped if exit_code in STOPPED_CODES else JobState.failed


def ended_reason(exit_code: int) -> str:
    """Return the exit code in words, such as `exit code 2: bad input`; nothing for 0."""
    if exit_code == 0:
        return ""
    return f"exit code {exit_code}" + (f": {EXIT_WORDS[exit_code]}" if exit_code in EXIT_WORDS else "")
