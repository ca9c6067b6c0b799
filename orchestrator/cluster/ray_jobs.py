"""Jobs on a running cluster, over Ray's Jobs API: submit, list, status, logs, stop.

A submission id is derived from what is run, so submitting the same thing twice gives one job. The token is sent in a
header and nowhere else, because the API shows a job's entry point, metadata and runtime_env to everyone.
"""

from __future__ import annotations

import asyncio
import difflib
import logging
import math
import re
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import ray
from ray.exceptions import AuthenticationError
from ray.job_submission import JobSubmissionClient

from orchestrator.cluster.job_server import Server, environment_without_addresses
from orchestrator.cluster.turn import PREFIX
from orchestrator.errors import BadInput, ClusterError, Problem

for chatty in ("dashboard.modules.dashboard_sdk", "dashboard.modules.job.sdk", "_private.runtime_env.packaging"):
    logging.getLogger(f"ray.{chatty}").setLevel(logging.WARNING)  # Ray sets them to INFO itself

UNFINISHED = ("PENDING", "RUNNING")
BACKOFF_S = (0.5, 1.0, 2.0, 4.0, 8.0, 8.0)  # a new cluster has no agent for its first seconds
LOOK_PREFIX = "look-"  # of short commands, which are no jobs of rlhf
LOOK_EVERY_S = 0.25
STOP_POLLS = 40
STOP_WAIT = "RAY_JOB_STOP_WAIT_TIME_S"  # read by the process that supervises a job, which has the job's environment


@dataclass(frozen=True, kw_only=True, slots=True)
class JobRequest:
    """Job to submit. Example: `JobRequest(id="rlhf-arith-1a2b3c4d", entrypoint="rlhf run grpo.yaml")`."""

    id: str
    entrypoint: str
    archive: Path | None = None  # zip file that the job starts in; None: nothing is uploaded
    metadata: Mapping[str, str] = field(default_factory=dict)
    grace_s: float | None = None  # from SIGTERM to SIGKILL when the job is stopped; None: Ray's default, 3 s


@dataclass(frozen=True, kw_only=True, slots=True)
class Job:
    """Job of the cluster. Times are Unix seconds; None: not yet."""

    id: str
    status: str  # PENDING, RUNNING, SUCCEEDED, FAILED, STOPPED
    message: str
    entrypoint: str
    metadata: Mapping[str, str]
    started: float | None
    ended: float | None
    exit_code: int | None
    runtime_env: Mapping[str, Any] = field(default_factory=dict)

    @property
    def is_finished(self) -> bool:
        return self.status not in UNFINISHED


@dataclass(frozen=True, kw_only=True, slots=True)
class Submitted:
    """Result of a submission. `is_new` is False if the same job was submitted before and has not failed."""

    job: Job
    is_new: bool


class Jobs:
    """Jobs of one cluster."""

    def __init__(
        self,
        client: Any,
        address: str,
        *,
        ray_version: str = ray.__version__,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._client, self._address, self._sleep = client, address, sleep
        self.ray_version = ray_version  # the cluster's

    @property
    def other_ray(self) -> str:
        """Note that the cluster runs another version of Ray than this machine; empty if it does not."""
        if self.ray_version == ray.__version__:
            return ""
        return f"the cluster runs ray {self.ray_version}, here is ray {ray.__version__}: the job uses the cluster's"

    @classmethod
    def connect(cls, server: Server) -> Jobs:
        """Connect to a job server. Raise ClusterError with the step that failed."""
        version = server.check()
        with _translated(server.url), environment_without_addresses():
            client = JobSubmissionClient(server.url, headers=dict(server.headers))
        return cls(client, server.url, ray_version=version)

    def submit(self, request: JobRequest) -> Submitted:
        """Start a job, or find the one that the same request started before.

        A job that failed or was stopped is submitted again, under its id with `-2`, `-3`, ….

        Raises:
            ClusterError: the cluster refuses the job.
        """
        attempt_id, number = request.id, 1
        while existing := self.find(attempt_id):
            if existing.status in (*UNFINISHED, "SUCCEEDED"):
                return Submitted(job=existing, is_new=False)
            number += 1
            attempt_id = f"{request.id}-{number}"
        runtime_env: dict[str, Any] = {}
        if request.archive is not None:  # of a directory, Ray would leave out what git ignores
            runtime_env["working_dir"] = str(request.archive)
        if request.grace_s is not None:
            runtime_env["env_vars"] = {STOP_WAIT: str(math.ceil(request.grace_s))}
        is_new = self._submit_with_retries(attempt_id, request, runtime_env)
        return Submitted(job=self.get(attempt_id), is_new=is_new)

    def _submit_with_retries(self, id: str, request: JobRequest, runtime_env: Mapping[str, Any]) -> bool:
        """Submit the job. Return False if somebody else submitted the same one at the same time."""
        with _translated(self._address):
            for pause in (*BACKOFF_S, None):
                try:
                    self._client.submit_job(
                        entrypoint=request.entrypoint,
                        submission_id=id,
                        runtime_env=dict(runtime_env),
                        metadata=dict(request.metadata),
                    )
                    return True
                except RuntimeError as error:
                    if "already exists" in str(error):
                        return False
                    if "No available agent" not in str(error) or pause is None:
                        raise
                    self._sleep(pause)
        raise AssertionError("unreachable")

    def find(self, id: str) -> Job | None:
        try:
            with _translated(self._address):
                return _job(self._client.get_job_info(id))
        except _UnknownJobError:
            return None

    def get(self, id: str) -> Job:
        """Return the job. Raise BadInput with the most similar ids if there is none."""
        if job := self.find(id):
            return job
        raise self._unknown(id)

    def list(self) -> list[Job]:
        """Return all submitted jobs, newest first. Drivers that connected by themselves are not jobs."""
        with _translated(self._address):
            jobs = [_job(details) for details in self._client.list_jobs() if details.submission_id]
        return sorted(jobs, key=lambda job: job.started or 0, reverse=True)

    def logs(self, id: str) -> str:
        self.get(id)
        with _translated(self._address):
            return str(self._client.get_job_logs(id))

    def follow(self, id: str) -> Iterator[str]:
        """Yield the log as it grows, until the job ends."""
        self.get(id)
        chunks = self._client.tail_job_logs(id)
        with _translated(self._address), asyncio.Runner() as runner:
            while (chunk := runner.run(_next(chunks))) is not None:
                yield chunk

    def stop(self, id: str) -> Job:
        """Ask a job to end. Raise BadInput if there is no such job or it has ended."""
        job = self.get(id)
        if job.is_finished:
            what, why = f"job {id} cannot be stopped", f"it has ended: {job.status}"
            raise BadInput(Problem(what=what, where=self._address, why=why))
        with _translated(self._address):
            self._client.stop_job(id)
        return job

    def run_once(self, entrypoint: str, *, timeout_s: float) -> tuple[int | None, str]:
        """Run a short command on the head node, and return its exit code and its log. No job is left in the list.

        The command takes no CPU or GPU of the cluster, so it runs on a full one.

        Raises:
            ClusterError: the cluster refuses it, or it has not ended after `timeout_s`.
        """
        id = f"{LOOK_PREFIX}{uuid.uuid4().hex[:16]}"
        self._submit_with_retries(id, JobRequest(id=id, entrypoint=entrypoint), {})
        try:
            job, deadline = self.get(id), time.monotonic() + timeout_s
            while not job.is_finished and time.monotonic() < deadline:
                self._sleep(LOOK_EVERY_S)
                job = self.get(id)
            if not job.is_finished:
                why, fix = f"it has not ended after {timeout_s:.0f} s", "is the head node overloaded? try again later"
                raise ClusterError(
                    Problem(what="a command on the cluster hangs", where=self._address, why=why, fix=fix)
                )
            if job.exit_code is None:
                what, why = "a command on the cluster did not run", job.message.strip().split("\n")[-1]
                raise ClusterError(Problem(what=what, where=self._address, why=why))
            return job.exit_code, self.logs(id)
        finally:
            with suppress(ClusterError, BadInput, _UnknownJobError):
                self._remove(id)

    def _remove(self, id: str) -> None:
        """Delete a job from the list, once it has ended."""
        with _translated(self._address):
            if not self.get(id).is_finished:
                self._client.stop_job(id)
                for _ in range(STOP_POLLS):
                    self._sleep(LOOK_EVERY_S)
                    if self.get(id).is_finished:
                        break
            self._client.delete_job(id)

    def start_again(self, job: Job, entrypoint: str | None = None) -> Submitted:
        """Start a job that has ended again, with the files that it had, under its id with `-2`, `-3`, …."""
        base, metadata = job.id, {name: text for name, text in job.metadata.items() if name != "job_submission_id"}
        if number := re.fullmatch(rf"({PREFIX}.+-[0-9a-f]{{8}})-\d+", job.id):
            base = number[1]
        attempt_id, number_of = base, 1
        while existing := self.find(attempt_id):
            if not existing.is_finished:
                return Submitted(job=existing, is_new=False)
            number_of += 1
            attempt_id = f"{base}-{number_of}"
        request = JobRequest(id=attempt_id, entrypoint=entrypoint or job.entrypoint, metadata=metadata)
        is_new = self._submit_with_retries(attempt_id, request, job.runtime_env)
        return Submitted(job=self.get(attempt_id), is_new=is_new)

    def _unknown(self, id: str) -> BadInput:
        ids = [job.id for job in self.list()]
        near = difflib.get_close_matches(id, ids, n=3, cutoff=0.4) or ids[:3]
        fix = f"use one of {', '.join(near)}" if near else "submit one: there are no jobs on this cluster"
        return BadInput(Problem(what=f"unknown job {id}", where=self._address, fix=fix))


async def _next(chunks: Any) -> str | None:
    return await anext(chunks, None)


def _job(details: Any) -> Job:
    def seconds(milliseconds: int | None) -> float | None:
        return milliseconds / 1000 if milliseconds else None

    return Job(
        id=details.submission_id or details.job_id or "",
        status=getattr(details.status, "value", str(details.status)),
        message=details.message or "",
        entrypoint=details.entrypoint,
        metadata=details.metadata or {},
        started=seconds(details.start_time),
        ended=seconds(details.end_time),
        exit_code=details.driver_exit_code,
        runtime_env=getattr(details, "runtime_env", None) or {},
    )


class _UnknownJobError(Exception):
    """The server has no job of that id."""


@contextmanager
def _translated(address: str) -> Iterator[None]:
    """Translate the exceptions of Ray and of the network to ours. No other place reads their messages."""
    try:
        yield
    except AuthenticationError as error:
        what, fix = "the token was refused", "set RAY_AUTH_TOKEN_PATH to the cluster's token file"
        raise ClusterError(Problem(what=what, where=address, why=_first_line(error), fix=fix)) from None
    except OSError as error:  # requests' and the socket's
        fix = "is the cluster still up? check its address and your network"
        problem = Problem(what="the connection broke", where=address, why=_first_line(error), fix=fix)
        raise ClusterError(problem) from None
    except RuntimeError as error:
        if "status code 404" in str(error):
            raise _UnknownJobError from None
        raise ClusterError(Problem(what="the job server refused", where=address, why=_first_line(error))) from None


def _first_line(error: Exception) -> str:
    """Return the line that says what happened: the last one of a server's traceback."""
    lines = [line for line in re.split(r"\\n|\n", str(error)) if line.strip()]
    return lines[-1].strip().strip("\"'}.") if lines else type(error).__name__
