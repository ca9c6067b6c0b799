"""Launcher for a Ray cluster that runs already: a job is a job of Ray's Jobs API."""

from __future__ import annotations

import json
import re
import shlex
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from orchestrator.cluster.turn import DIRECTORIES, PRIORITY, RUN, ahead, describe, read_jobs
from orchestrator.errors import ClusterError, Problem, RlhfError
from orchestrator.launch.base import (
    PREFIX,
    Job,
    JobRequest,
    JobState,
    Output,
    Submitted,
    ended_reason,
    ended_state,
    newest_repetition,
    refuse_to_resume,
    refuse_to_stop,
)
from orchestrator.launch.entry import find_output, output_command, with_same_secrets, with_secrets
from orchestrator.launch.package import write_zip
from orchestrator.launch.targets import RayTarget
from orchestrator.rundir.stop import this_user

if TYPE_CHECKING:
    from orchestrator.cluster import ray_jobs
    from orchestrator.cluster.job_server import Server

RECIPE = "rlhf_recipe"
"""Metadata of a job, beside the keys of `turn`. Everyone who may list the cluster's jobs sees it."""

STATES = {
    "PENDING": JobState.queued,
    "RUNNING": JobState.running,
    "SUCCEEDED": JobState.succeeded,
    "FAILED": JobState.failed,
    "STOPPED": JobState.stopped,
}
EXECUTE_S = 120.0  # for a command that reads a run directory


class RayLauncher:
    """Jobs of one Ray cluster. It connects when it is first used."""

    def __init__(self, target: RayTarget, *, token_file: Path | None = None, jobs: ray_jobs.Jobs | None = None) -> None:
        """Set the target. `jobs`: connection that is open already."""
        self._target, self._token_file = target, token_file or target.token_file
        self._server: Server | None = None  # None: not connected, or to `jobs`
        if jobs is not None:
            self._jobs = jobs

    @cached_property
    def _jobs(self) -> ray_jobs.Jobs:
        return self._connect(open_is_allowed=True)

    def _connect(self, *, open_is_allowed: bool) -> ray_jobs.Jobs:
        from orchestrator.cluster.job_server import Server
        from orchestrator.cluster.ray_jobs import Jobs

        server = Server.at(self._target.address, token_file=self._token_file, open_is_allowed=open_is_allowed)
        jobs = Jobs.connect(server)
        self._server = server
        return jobs

    @property
    def note(self) -> str:
        """Line for the person who submits: the cluster runs another version of Ray; empty if it does not."""
        return self._jobs.other_ray

    # ------------------------------------------------------------------------------------------ start

    def submit(self, request: JobRequest) -> Submitted:
        from orchestrator.cluster.ray_jobs import JobRequest as RayRequest

        if "_jobs" not in self.__dict__:
            self._jobs = self._connect(open_is_allowed=self._target.allow_open)
        with tempfile.TemporaryDirectory() as folder:
            archive = None
            if request.package is not None:
                write_zip(request.package, archive := Path(folder) / "package.zip")
            submitted = self._jobs.submit(
                RayRequest(
                    id=request.id,
                    entrypoint=shlex.join(with_secrets(request.command, request.secrets)),
                    archive=archive,
                    metadata=metadata_of(request),
                    grace_s=request.grace_s,
                )
            )
        return Submitted(job=_job(submitted.job), is_new=submitted.is_new)

    def resume(self, id: str, command: Sequence[str] | None = None) -> Submitted:
        job = self._newest(id)
        refuse_to_resume(_job(job), self._target.address)
        entrypoint = None if command is None else _with_command(job.entrypoint, command)
        submitted = self._jobs.start_again(job, entrypoint)
        return Submitted(job=_job(submitted.job), is_new=submitted.is_new)

    # ------------------------------------------------------------------------------------------- look

    def find(self, id: str) -> Job | None:
        found = self._find(id)
        return None if found is None else self._with_turns([_job(found)])[0]

    def list(self) -> Sequence[Job]:
        return self._with_turns([_job(job) for job in self._jobs.list() if job.id.startswith(PREFIX)])

    def _with_turns(self, jobs: Sequence[Job]) -> Sequence[Job]:
        """Show jobs that wait for their turn as queued: Ray runs every job at once, and its driver waits."""
        if self._server is None or not any(job.state is JobState.running for job in jobs):
            return jobs
        try:
            unfinished = read_jobs(self._server)
        except ClusterError:  # the states are right without it
            return jobs
        placed = {job.id for job in unfinished if job.has_places}
        reasons = {job.id: describe(ahead(unfinished, job.id)) for job in jobs if job.id not in placed}
        waits = {job.id for job in jobs if job.state is JobState.running and reasons.get(job.id)}
        return [replace(j, state=JobState.queued, reason=reasons[j.id]) if j.id in waits else j for j in jobs]

    def logs(self, id: str, *, follow: bool = False) -> Iterator[str]:
        job = self._newest(id)
        if not follow:
            log = self._jobs.logs(job.id)
            rest = _after_header(log, job)
            yield log if rest is None else rest
            return
        yield from self._follow(job)

    def _follow(self, job: ray_jobs.Job) -> Iterator[str]:
        """Yield the log without Ray's first lines. What comes before them is shown if the job never began."""
        held: str | None = ""
        for piece in self._jobs.follow(job.id):
            if held is None:
                yield piece
                continue
            held += piece
            if (rest := _after_header(held, job)) is not None:
                held = None
                if rest:
                    yield rest
        if held:
            yield held

    def _find(self, id: str) -> ray_jobs.Job | None:
        """Return the newest repetition of a job: `ID-2` comes after `ID`."""
        return newest_repetition(id, self._jobs.find)

    def _newest(self, id: str) -> ray_jobs.Job:
        return self._find(id) or self._jobs.get(id)

    # ------------------------------------------------------------------------------------------- stop

    def stop(self, id: str) -> None:
        """Write the stop file of the run that is in progress. Ray's own stop is for a job that has none, or several.

        Ray sends SIGTERM, and SIGKILL after RAY_JOB_STOP_WAIT_TIME_S.
        """
        job = self._newest(id)
        shown = _job(job)
        refuse_to_stop(shown, self._target.address)
        if shown.state is JobState.running and shown.directories and not _is_comparison(job.entrypoint):
            try:
                asked = ["stop", *shown.directories, "--by", this_user(), "--job", job.id]
                if self.execute(shown, asked).exit_code == 0:
                    return
            except RlhfError:
                pass  # Ray can still stop it
        self._jobs.stop(job.id)

    # ---------------------------------------------------------------------------------------- execute

    def execute(self, job: Job, arguments: Sequence[str]) -> Output:
        code, log = self._jobs.run_once(shlex.join(output_command(arguments)), timeout_s=EXECUTE_S)
        if (output := find_output(log)) is not None:
            return output
        said = " ".join(log.split())[-300:]
        fix = "install the same version of rlhf on the head node, where Ray's processes find it in PATH"
        what, where = f"`rlhf {arguments[0]}` cannot be run on the cluster", self._target.address
        raise ClusterError(Problem(what=what, where=where, why=f"exit code {code}: {said}", fix=fix))


RAY_LINE = re.compile(r"^\d{4}-\d\d-\d\d [\d:,]+\t[A-Z]+ \w+\.py:\d+ -- .*\n", re.MULTILINE)
"""Line of Ray's job manager in the log of a job."""


def metadata_of(request: JobRequest) -> Mapping[str, str]:
    """Return what the cluster keeps of a request, so that every other machine can look at the job."""
    recipe = next((word for word in request.command if word.endswith((".yaml", ".yml"))), "")
    metadata = {RUN: request.run, RECIPE: recipe, DIRECTORIES: json.dumps(list(request.directories))}
    metadata |= {PRIORITY: str(request.priority)} if request.priority else {}
    return {name: text for name, text in metadata.items() if text}


def _job(job: ray_jobs.Job) -> Job:
    shown = Job(
        id=job.id,
        state=STATES.get(job.status, JobState.running),
        run=job.metadata.get(RUN, ""),
        directories=_directories(job.metadata.get(DIRECTORIES, "")),
        submitted=job.started,  # Ray's start_time is the time of submission
        started=None if job.status == "PENDING" else job.started,
        ended=job.ended,
        exit_code=job.exit_code,
        engine_state=job.status,
    )
    if not shown.state.is_finished:
        return replace(shown, reason=job.message.strip() if shown.state is JobState.queued else "")
    if job.status == "STOPPED":
        return replace(shown, exit_code=143 if job.exit_code is None else job.exit_code, reason="stopped through Ray")
    if job.exit_code is None:
        lines = job.message.strip().splitlines()
        return replace(shown, reason=lines[-1].strip() if lines else "")
    return replace(shown, state=ended_state(job.exit_code), reason=ended_reason(job.exit_code))


def _directories(text: str) -> tuple[str, ...]:
    try:
        return tuple(str(path) for path in json.loads(text))
    except (ValueError, TypeError):
        return ()


def _after_header(log: str, job: ray_jobs.Job) -> str | None:
    """Return what a job's own command has printed; None if it has not been started.

    Ray writes lines of its own, of which the last one shows the entrypoint, which may have several lines. Another
    process writes them, so that the command's first words may come before.
    """
    before, header, rest = log.partition(f"Running entrypoint for job {job.id}: {job.entrypoint}\n")
    return RAY_LINE.sub("", before) + rest if header else None


def _is_comparison(entrypoint: str) -> bool:
    return "rlhf compare" in entrypoint


def _with_command(entrypoint: str, command: Sequence[str]) -> str:
    """Return the entrypoint with another command, which gets the same secrets."""
    return shlex.join(with_same_secrets(shlex.split(entrypoint), command))
