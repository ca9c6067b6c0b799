"""Jobs on a running cluster, over Ray's Jobs API: submit, list, status, logs, stop.

A submission id is made from what is run, so submitting the same thing twice is one job. The token travels in
a header and nowhere else: what a job carries (entry point, metadata, runtime_env) the API shows to everyone.
"""

from __future__ import annotations

import asyncio
import difflib
import logging
import re
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import ray
from ray.exceptions import AuthenticationError
from ray.job_submission import JobSubmissionClient

from orchestrator.cluster.job_server import Server, environment_without_addresses
from orchestrator.cluster.job_upload import EXCLUDES, check_size
from orchestrator.errors import BadInput, ClusterError, Problem

for chatty in ("ray.dashboard.modules.dashboard_sdk", "ray._private.runtime_env.packaging"):
    logging.getLogger(chatty).setLevel(logging.WARNING)  # Ray sets them to INFO itself

UNFINISHED = ("PENDING", "RUNNING")
BACKOFF_S = (0.5, 1.0, 2.0, 4.0, 8.0, 8.0)  # a new cluster has no agent for its first seconds
PREFIX = "rlhf-"


@dataclass(frozen=True, kw_only=True, slots=True)
class JobRequest:
    """What is to run. Example: `JobRequest(id="rlhf-arith-1a2b3c4d", entrypoint="rlhf run grpo.yaml")`."""

    id: str
    entrypoint: str
    working_dir: Path | None = None  # None: nothing is uploaded
    metadata: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True, slots=True)
class Job:
    """One job of the cluster. Times are Unix seconds; None: not yet."""

    id: str
    status: str  # PENDING, RUNNING, SUCCEEDED, FAILED, STOPPED
    message: str
    entrypoint: str
    metadata: Mapping[str, str]
    started: float | None
    ended: float | None
    exit_code: int | None

    @property
    def is_finished(self) -> bool:
        return self.status not in UNFINISHED


@dataclass(frozen=True, kw_only=True, slots=True)
class Submitted:
    """`is_new` is False when the same thing was submitted before and is running, or done."""

    job: Job
    is_new: bool


class Jobs:
    """The jobs of one cluster."""

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
        """What to say when the cluster's Ray is not the one here; empty when it is."""
        if self.ray_version == ray.__version__:
            return ""
        return f"the cluster runs ray {self.ray_version}, here is ray {ray.__version__}: the job uses the cluster's"

    @classmethod
    def connect(cls, server: Server) -> Jobs:
        """Raises ClusterError with the step of connecting that failed."""
        version = server.check()
        with _translated(server.url), environment_without_addresses():
            client = JobSubmissionClient(server.url, headers=dict(server.headers))
        return cls(client, server.url, ray_version=version)

    def submit(self, request: JobRequest) -> Submitted:
        """Starts a job, or finds the one that the same request started before.

        A job that failed or was stopped does not count: its next attempt gets the id with `-2`, `-3`, ….

        Raises:
            BadInput: the directory to upload is too large.
            ClusterError: the cluster does not take the job.
        """
        attempt_id, number = request.id, 1
        while existing := self.find(attempt_id):
            if existing.status in (*UNFINISHED, "SUCCEEDED"):
                return Submitted(job=existing, is_new=False)
            number += 1
            attempt_id = f"{request.id}-{number}"
        runtime_env: dict[str, Any] = {}
        if request.working_dir is not None:
            check_size(request.working_dir)
            runtime_env = {"working_dir": str(request.working_dir), "excludes": list(EXCLUDES)}
        is_new = self._submit_with_retries(attempt_id, request, runtime_env)
        return Submitted(job=self.get(attempt_id), is_new=is_new)

    def _submit_with_retries(self, id: str, request: JobRequest, runtime_env: Mapping[str, Any]) -> bool:
        """False: another submission of the same was faster."""
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
        """Raises BadInput with the nearest ids when there is no such job."""
        if found := self.find(id):
            return found
        raise self._unknown(id)

    def list(self) -> list[Job]:
        """Newest first; those that were submitted as jobs, not drivers that connected by themselves."""
        with _translated(self._address):
            found = [_job(details) for details in self._client.list_jobs() if details.submission_id]
        return sorted(found, key=lambda job: job.started or 0, reverse=True)

    def newest(self) -> Job:
        """The newest of our own. Raises BadInput when there is none."""
        found = [job for job in self.list() if job.id.startswith(PREFIX)]
        if not found:
            fix = f"submit one: rlhf submit RECIPE --cluster {self._address}"
            raise BadInput(Problem(what="there are no jobs of rlhf", where=self._address, fix=fix))
        return found[0]

    def logs(self, id: str) -> str:
        self.get(id)
        with _translated(self._address):
            return str(self._client.get_job_logs(id))

    def follow(self, id: str) -> Iterator[str]:
        """The log as it grows, until the job ends."""
        self.get(id)
        chunks = self._client.tail_job_logs(id)
        with _translated(self._address), asyncio.Runner() as runner:
            while (chunk := runner.run(_next(chunks))) is not None:
                yield chunk

    def stop(self, id: str) -> Job:
        """Asks a job to end. Raises BadInput when there is none, or it has ended."""
        job = self.get(id)
        if job.is_finished:
            why = f"it has ended: {job.status}"
            raise BadInput(Problem(what=f"job {id} cannot be stopped", where=self._address, why=why))
        with _translated(self._address):
            self._client.stop_job(id)
        return job

    def _unknown(self, id: str) -> BadInput:
        ids = [job.id for job in self.list()]
        near = difflib.get_close_matches(id, ids, n=3, cutoff=0.4) or ids[:3]
        fix = f"the nearest are: {', '.join(near)}" if near else "there are no jobs on this cluster"
        return BadInput(Problem(what=f"there is no job {id}", where=self._address, fix=fix))


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
    )


class _UnknownJobError(Exception):
    """The server knows no job of that id."""


@contextmanager
def _translated(address: str) -> Iterator[None]:
    """What Ray and the network raise, as ours. The one place where their messages are read."""
    try:
        yield
    except AuthenticationError as error:
        fix = "set RAY_AUTH_TOKEN_PATH to the cluster's token file"
        problem = Problem(what="the token is refused", where=address, why=_first_line(error), fix=fix)
        raise ClusterError(problem) from None
    except OSError as error:  # requests' and the socket's
        fix = "is the cluster still up? check its address and your network"
        problem = Problem(what="the connection broke", where=address, why=_first_line(error), fix=fix)
        raise ClusterError(problem) from None
    except RuntimeError as error:
        if "status code 404" in str(error):
            raise _UnknownJobError from None
        problem = Problem(what="the job server refused", where=address, why=_first_line(error))
        raise ClusterError(problem) from None


def _first_line(error: Exception) -> str:
    """Of a server's traceback: its last line, which says what happened."""
    lines = [line for line in re.split(r"\\n|\n", str(error)) if line.strip()]
    return lines[-1].strip().strip("\"'}.") if lines else type(error).__name__


def submission_id(name: str, digest: str) -> str:
    """`rlhf-arith-grpo-1a2b3c4d`: equal for equal runs."""
    return f"{PREFIX}{name}-{digest[:8]}"
