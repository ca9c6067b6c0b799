"""Jobs on Kubernetes: each is a RayJob of KubeRay, with a Ray cluster of its own.

    submit   ConfigMap, NetworkPolicy (apply), RayJob (create: of two at once, one is first)
    find     RayJob, Kueue's Workload, pods ──► kuberay_status.job_of
    stop     `rlhf stop` in the head pod, and no new cluster after it; a job without a driver is deleted
    execute  in the head pod; after the job's end in a short pod that sees the volume

This was tried against an imitation of kubectl, with objects built from KubeRay's source; not on an API server.
"""

from __future__ import annotations

import json
import secrets
import shlex
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from orchestrator.errors import BadInput, ClusterError, Problem, RlhfError
from orchestrator.launch.base import (
    Job,
    JobRequest,
    JobState,
    Output,
    Pods,
    Submitted,
    refuse_to_resume,
    refuse_to_stop,
)
from orchestrator.launch.entry import find_output, output_command
from orchestrator.launch.kubectl import LONG_S, Kubectl
from orchestrator.launch.kuberay_pods import pod_spec
from orchestrator.launch.kuberay_status import STOP, job_of
from orchestrator.launch.render_kuberay import (
    APP,
    COMMAND,
    ID,
    JOB_LABEL,
    QUEUE,
    Manifest,
    job_name,
    render,
    with_command,
)
from orchestrator.launch.targets import KubeRayTarget
from orchestrator.rundir.stop import this_user

RAY_JOBS, WORKLOADS = "rayjobs.ray.io", "workloads.kueue.x-k8s.io"
DRIVER = "ray-job-submitter"  # KubeRay's name of the container that hands the command to Ray and prints its log
NOT_YET = (JobState.queued, JobState.preempted)
POLL_S = 2.0
LOOK = Pods(role="look", count=1, gpus=0, cpus=1, memory_gib=2, shm_gib=1)


class KubeRayLauncher:
    """Jobs of a namespace of a Kubernetes cluster."""

    def __init__(self, target: KubeRayTarget, *, sleep: Callable[[float], None] = time.sleep) -> None:
        self._target, self._sleep = target, sleep
        self._kubectl = Kubectl(context=target.context, namespace=target.namespace)

    # ------------------------------------------------------------------------------------------ start

    def submit(self, request: JobRequest) -> Submitted:
        earlier = self._repetitions(request.id)
        if earlier:
            job = self._job(earlier[0])
            if job.state not in (JobState.failed, JobState.stopped):
                return Submitted(job=job, is_new=False)
        *shared, ray_job = render(request, self._target, repetition=len(earlier) + 1)
        for manifest in shared:
            # On the server's side: the client's `apply` copies the whole object to an annotation, which is limited.
            self._kubectl.run("apply", "--server-side", "--force-conflicts", "-f", "-", manifest=manifest)
        return self._create(ray_job)

    def resume(self, id: str, command: Sequence[str] | None = None) -> Submitted:
        earlier = self._repetitions(id)
        job = self._job(self._newest(id))
        refuse_to_resume(job, self._kubectl.where)
        base = earlier[-1]["metadata"]["annotations"][ID]
        again = _again(earlier[0], base, len(earlier) + 1)
        words = shlex.split(again["metadata"]["annotations"][COMMAND]) if command is None else command
        id = f"{base}-{len(earlier) + 1}"
        return self._create(with_command(again, id, words, backoff_limit=self._target.backoff_limit))

    def _create(self, ray_job: Manifest) -> Submitted:
        """Create a RayJob. Of two that are created at once, the second one finds the first."""
        name = ray_job["metadata"]["name"]
        done = self._kubectl.attempt("create", "-f", "-", manifest=ray_job)
        is_new = done.returncode == 0
        if not is_new and "AlreadyExists" not in done.stderr:
            self._kubectl.run("create", "-f", "-", manifest=ray_job)  # once more, for the error
        created = self._kubectl.get(RAY_JOBS, name)
        if not created:
            raise ClusterError(Problem(what=f"RayJob {name} is gone", where=self._kubectl.where, fix="submit again"))
        return Submitted(job=self._job(created), is_new=is_new)

    # ------------------------------------------------------------------------------------------- look

    def find(self, id: str) -> Job | None:
        found = self._repetitions(id)
        return self._job(found[0]) if found else None

    def list(self) -> Sequence[Job]:
        found = self._kubectl.items(RAY_JOBS, "-l", f"{APP}=rlhf")
        queued = any(QUEUE in each["metadata"].get("labels", {}) for each in found)
        workloads = {_owner(each): each for each in self._kubectl.items(WORKLOADS)} if queued else {}
        jobs = [job_of(each, workloads.get(each["metadata"].get("uid"))) for each in found]
        return sorted(jobs, key=lambda job: job.submitted or 0.0, reverse=True)

    def _repetitions(self, id: str) -> Sequence[dict[str, Any]]:
        """Return the RayJobs of an id, the newest first: all repetitions, or the one whose own id this is."""
        found = self._kubectl.items(RAY_JOBS, "-l", f"{JOB_LABEL}={job_name(id)}")
        if not found:
            every = self._kubectl.items(RAY_JOBS, "-l", f"{APP}=rlhf")
            found = [e for e in every if id in (e["metadata"]["name"], e["metadata"].get("annotations", {}).get(ID))]
        return sorted(found, key=_number, reverse=True)

    def _newest(self, id: str) -> dict[str, Any]:
        found = self._repetitions(id)
        if not found:
            known = ", ".join(job.id for job in self.list()[:3])
            fix = f"use one of {known}" if known else "submit one: there are no jobs in this namespace"
            raise BadInput(Problem(what=f"unknown job {id}", where=self._kubectl.where, fix=fix))
        return found[0]

    def _job(self, ray_job: Mapping[str, Any]) -> Job:
        """Return a RayJob as a job, with the reason of one that waits or starts."""
        metadata = ray_job["metadata"]
        workload = None
        if QUEUE in metadata.get("labels", {}) and ray_job.get("spec", {}).get("suspend"):
            found = self._kubectl.items(WORKLOADS, "-l", f"kueue.x-k8s.io/job-uid={metadata.get('uid')}")
            workload = found[0] if found else None
        is_starting = ray_job.get("status", {}).get("jobDeploymentStatus") in ("Initializing", "Waiting")
        return job_of(ray_job, workload, self._pods(ray_job) if is_starting else ())

    def _pods(self, ray_job: Mapping[str, Any], *selectors: str) -> Sequence[dict[str, Any]]:
        cluster = ray_job.get("status", {}).get("rayClusterName")
        if not cluster:
            return ()
        return self._kubectl.items("pods", "-l", ",".join((f"ray.io/cluster={cluster}", *selectors)))

    def _head(self, ray_job: Mapping[str, Any]) -> str | None:
        """Return the name of the head pod, if it runs."""
        pods = self._pods(ray_job, "ray.io/node-type=head")
        return next((pod["metadata"]["name"] for pod in pods if pod.get("status", {}).get("phase") == "Running"), None)

    def logs(self, id: str, *, follow: bool = False) -> Iterator[str]:
        seen: set[str] = set()
        while True:
            ray_job = self._newest(id)
            job, pods = self._job(ray_job), self._pods(ray_job, "ray.io/node-type=head")
            phases = ("Running", "Succeeded", "Failed")
            begun = (pod["metadata"]["name"] for pod in pods if pod.get("status", {}).get("phase") in phases)
            head = next(begun, None)
            if head is not None and head not in seen:
                seen.add(head)
                yield from self._kubectl.stream("logs", head, "-c", DRIVER, *(["--follow"] if follow else []))
            elif job.state.is_finished and not seen:
                yield f"the pods of {job.id} are gone, and their output with them; see rlhf why {job.id}\n"
            if not follow or job.state.is_finished:
                return
            self._sleep(POLL_S)

    # ------------------------------------------------------------------------------------------- stop

    def stop(self, id: str) -> None:
        ray_job = self._newest(id)
        job, name = self._job(ray_job), ray_job["metadata"]["name"]
        refuse_to_stop(job, self._kubectl.where)
        # KubeRay starts a failed job again, and a run that was stopped ends with 143: before it ends, no more clusters.
        patch = {"metadata": {"annotations": {STOP: this_user()}}, "spec": {"backoffLimit": 0}}
        self._kubectl.run("patch", RAY_JOBS, name, "--type", "merge", "--patch", json.dumps(patch))
        is_one_run = job.directories and not _is_comparison(ray_job)
        if job.state not in NOT_YET and is_one_run and self._head(ray_job) is not None:
            try:
                if self.execute(job, ["stop", *job.directories, "--by", this_user()]).exit_code == 0:
                    return
            except RlhfError:
                pass  # deleting it stops it as well: each pod asks the run to save first
        self._kubectl.run("delete", RAY_JOBS, name, "--wait=false")

    # ---------------------------------------------------------------------------------------- execute

    def execute(self, job: Job, arguments: Sequence[str]) -> Output:
        ray_job = self._newest(job.id)
        head = self._head(ray_job)
        command = output_command(arguments)
        if head is not None:
            done = self._kubectl.attempt("exec", head, "-c", "ray", "--", *command, timeout_s=LONG_S)
            log, said = done.stdout, done.stderr or done.stdout
        else:
            log = said = self._in_a_short_pod(job, command)
        if (output := find_output(log)) is not None:
            return output
        what = f"`rlhf {arguments[0]}` cannot be run on the cluster"
        why = " ".join(said.split())[-300:] or "it printed nothing"
        fix = "use an image with the same version of rlhf"
        raise ClusterError(Problem(what=what, where=self._kubectl.where, why=why, fix=fix))

    def _in_a_short_pod(self, job: Job, command: Sequence[str]) -> str:
        """Run a command in a pod of its own that sees the volume, and return its output. The pod is deleted."""
        name = f"rlhf-look-{secrets.token_hex(4)}"
        request = JobRequest(id=job.id, run=job.run, command=(), grace_s=30.0)
        labels = {APP: "rlhf-look", JOB_LABEL: job_name(job.id)}
        pod = {
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": {"name": name, "namespace": self._target.namespace, "labels": labels},
            "spec": {**pod_spec(LOOK, request, self._target, command=command), "activeDeadlineSeconds": int(LONG_S)},
        }
        self._kubectl.run("create", "-f", "-", manifest=pod)
        try:
            for _ in range(int(LONG_S / POLL_S)):
                phase = self._kubectl.get("pod", name).get("status", {}).get("phase")
                if phase in ("Succeeded", "Failed"):
                    break
                self._sleep(POLL_S)
            return self._kubectl.run("logs", name).stdout
        finally:
            self._kubectl.attempt("delete", "pod", name, "--wait=false")


def _again(ray_job: Mapping[str, Any], base: str, repetition: int) -> Manifest:
    """Return the manifest of a RayJob that has ended, under the name of its next repetition."""
    metadata = ray_job["metadata"]
    annotations = {k: v for k, v in metadata["annotations"].items() if k.startswith("rlhf.dev/") and k != STOP}
    own = {"name": job_name(base, repetition), "namespace": metadata["namespace"], "labels": dict(metadata["labels"])}
    return {
        "apiVersion": ray_job["apiVersion"],
        "kind": "RayJob",
        "metadata": {**own, "annotations": annotations},
        "spec": dict(ray_job["spec"]),
    }


def _number(ray_job: Mapping[str, Any]) -> tuple[str, int]:
    """Return a key that orders repetitions: the time of creation, and the number in the name for equal seconds."""
    metadata = ray_job["metadata"]
    base = metadata.get("labels", {}).get(JOB_LABEL, "")
    digits = metadata["name"].removeprefix(base).lstrip("-")
    return metadata.get("creationTimestamp", ""), int(digits) if digits.isdigit() else 1


def _owner(workload: Mapping[str, Any]) -> str:
    owners = workload["metadata"].get("ownerReferences", [])
    return str(owners[0].get("uid", "")) if owners else ""


def _is_comparison(ray_job: Mapping[str, Any]) -> bool:
    return shlex.split(ray_job["metadata"].get("annotations", {}).get(COMMAND, ""))[1:2] == ["compare"]
