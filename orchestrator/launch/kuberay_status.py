"""State of a job from KubeRay's and Kueue's objects: pure functions of what `kubectl get -o json` prints.

spec.suspend, Workload               QUEUED, or PREEMPTED if it ran before
Initializing, Waiting                STARTING
Running                              RUNNING once Ray runs the driver
Retrying                             PREEMPTED: KubeRay starts it again on a new cluster
Complete, Failed, ValidationFailed   by the driver's exit code, which KubeRay has in its message only
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import datetime
from typing import Any

from orchestrator.launch.base import Job, JobState, ended_reason, ended_state
from orchestrator.launch.render_kuberay import DIRECTORIES, ID, QUEUE, RUN_LABEL

STOP = "rlhf.dev/stop"  # annotation: a person asked for the end
EXIT_CODE = re.compile(r"exit code (\d+)")
REASONS = {
    "SubmissionFailed": "the command could not be handed to Ray",
    "DeadlineExceeded": "its deadline has passed",
    "AppFailed": "the command failed, or the head pod was lost",
    "ValidationFailed": "KubeRay refuses the manifest",
}
"""Words of KubeRay for a failure, in ours."""


def job_of(
    ray_job: Mapping[str, Any], workload: Mapping[str, Any] | None = None, pods: Sequence[Mapping[str, Any]] = ()
) -> Job:
    """Return a RayJob as a job.

    Args:
        workload: Kueue's object of the RayJob; None: there is none.
        pods: the job's pods, for the reason of a job that starts.
    """
    metadata, status = ray_job["metadata"], ray_job.get("status", {})
    annotations = metadata.get("annotations", {})
    job = Job(
        id=annotations.get(ID, metadata["name"]),
        state=JobState.starting,
        run=annotations.get(RUN_LABEL, ""),
        directories=_directories(annotations.get(DIRECTORIES, "")),
        submitted=_seconds(metadata.get("creationTimestamp")),
        started=_seconds(status.get("rayJobInfo", {}).get("startTime")),
        ended=_seconds(status.get("endTime")),
        engine_state=" ".join(filter(None, (status.get("jobDeploymentStatus"), status.get("jobStatus")))) or "New",
    )
    return _with_state(job, ray_job, workload, pods)


def _with_state(
    job: Job, ray_job: Mapping[str, Any], workload: Mapping[str, Any] | None, pods: Sequence[Mapping[str, Any]]
) -> Job:
    metadata, spec, status = ray_job["metadata"], ray_job.get("spec", {}), ray_job.get("status", {})
    deployment, message = status.get("jobDeploymentStatus", ""), " ".join(status.get("message", "").split())
    if metadata.get("deletionTimestamp"):
        return replace(job, state=JobState.stopped, reason="it is being deleted")
    if deployment in ("Complete", "Failed", "ValidationFailed"):
        return _ended(job, status, is_asked=STOP in metadata.get("annotations", {}))
    if deployment == "Retrying":
        reason = f"attempt {status.get('failed', 1)} on a cluster of its own failed: {message}".rstrip(": ")
        return replace(job, state=JobState.preempted, reason=reason)
    if spec.get("suspend") or deployment in ("Suspending", "Suspended"):
        return _suspended(job, metadata, workload)
    if deployment == "Running":
        if status.get("jobStatus") in (None, "", "PENDING"):
            return replace(job, reason="the driver is being started")
        return replace(job, state=JobState.running)
    if not deployment:
        return replace(job, reason="waits for the KubeRay operator")
    return replace(job, reason=_pods_in_words(pods))


def _ended(job: Job, status: Mapping[str, Any], *, is_asked: bool) -> Job:
    message = " ".join(status.get("message", "").split())
    if status.get("jobStatus") == "SUCCEEDED":
        return replace(job, state=JobState.succeeded, exit_code=0)
    found = EXIT_CODE.search(message)
    code = int(found[1]) if found else None
    if status.get("jobStatus") == "STOPPED" or is_asked:
        return replace(job, state=JobState.stopped, exit_code=code, reason="a person asked for it")
    if code is not None:
        return replace(job, state=ended_state(code), exit_code=code, reason=ended_reason(code))
    words = REASONS.get(status.get("reason", ""), status.get("reason", "") or "KubeRay gives no reason")
    return replace(job, state=JobState.failed, reason=f"{words}: {message}" if message else words)


def _suspended(job: Job, metadata: Mapping[str, Any], workload: Mapping[str, Any] | None) -> Job:
    if QUEUE not in metadata.get("labels", {}):
        return replace(job, state=JobState.queued, reason="suspended by a person")
    evicted, quota = _condition(workload, "Evicted"), _condition(workload, "QuotaReserved")
    queue = metadata["labels"][QUEUE]
    if evicted.get("status") == "True":
        why = evicted.get("message") or evicted.get("reason", "")
        return replace(job, state=JobState.preempted, reason=f"Kueue took its machines: {why}".rstrip(": "))
    if quota.get("status") == "True":
        return replace(job, reason="Kueue has admitted it")
    return replace(job, state=JobState.queued, reason=quota.get("message") or f"waits in queue {queue}")


def _condition(workload: Mapping[str, Any] | None, kind: str) -> Mapping[str, Any]:
    conditions = (workload or {}).get("status", {}).get("conditions", [])
    return next((condition for condition in conditions if condition.get("type") == kind), {})


def _pods_in_words(pods: Sequence[Mapping[str, Any]]) -> str:
    """Return how many pods run, and what the first one that does not run waits for."""
    if not pods:
        return "its pods are being created"
    running = sum(pod.get("status", {}).get("phase") == "Running" for pod in pods)
    waits = next((why for pod in pods if (why := _waits_for(pod))), "")
    return f"{running} of {len(pods)} pods run" + (f"; {waits}" if waits else "")


def _waits_for(pod: Mapping[str, Any]) -> str:
    status = pod.get("status", {})
    for condition in status.get("conditions", []):
        if condition.get("type") == "PodScheduled" and condition.get("status") == "False":
            return " ".join(condition.get("message", condition.get("reason", "")).split())
    for container in (*status.get("initContainerStatuses", []), *status.get("containerStatuses", [])):
        waiting = container.get("state", {}).get("waiting", {})
        if waiting.get("reason") not in (None, "ContainerCreating", "PodInitializing"):
            return " ".join(f"{waiting['reason']}: {waiting.get('message', '')}".split()).rstrip(":")
    return ""


def _directories(text: str) -> tuple[str, ...]:
    try:
        return tuple(str(path) for path in json.loads(text))
    except (ValueError, TypeError):
        return ()


def _seconds(text: str | None) -> float | None:
    return datetime.fromisoformat(text).timestamp() if text else None
