"""Jobs on Kubernetes against an imitation of kubectl: no API server was asked. Its objects follow KubeRay's source."""

from __future__ import annotations

import json
import os
import sys
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from render_tools import target

from orchestrator.errors import BadInput, ClusterError
from orchestrator.launch.base import Job, JobRequest, JobState, Package, Pods, Resumer, Submitted
from orchestrator.launch.kuberay import KubeRayLauncher
from orchestrator.launch.kuberay_status import job_of
from orchestrator.launch.launchers import launcher_for
from orchestrator.launch.render_kuberay import render
from orchestrator.launch.targets import KubeRayTarget
from orchestrator.rundir.directory import RunDirectory
from orchestrator.rundir.stop import StopFile

FAKE = Path(__file__).parent / "fake_kubectl.py"
ID = "rlhf-arith-1a2b3c4d"


class Server:
    """Objects that the imitation of kubectl serves, and the calls that it got."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def objects(self, kind: str) -> dict[str, dict[str, Any]]:
        files = sorted((self.folder / "objects" / kind).glob("*.json"))
        return {file.stem: json.loads(file.read_text()) for file in files}

    def put(self, body: dict[str, Any]) -> None:
        place = self.folder / "objects" / body["kind"] / f"{body['metadata']['name']}.json"
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_text(json.dumps(body))

    def status(self, name: str, **status: Any) -> None:
        """Set the status of a RayJob, as KubeRay does."""
        job = self.objects("RayJob")[name]
        self.put({**job, "status": {"rayClusterName": f"{name}-abcde", **status}})

    def spec(self, name: str, **changes: Any) -> None:
        job = self.objects("RayJob")[name]
        self.put({**job, "spec": {**job["spec"], **changes}})

    def pod(self, cluster: str, kind: str, *, phase: str = "Running", log: str = "", **status: Any) -> None:
        name = f"{cluster}-{kind}"
        labels = {"ray.io/cluster": cluster, "ray.io/node-type": kind}
        body = {"kind": "Pod", "metadata": {"name": name, "labels": labels}, "status": {"phase": phase, **status}}
        self.put(body)
        (self.folder / "logs").mkdir(exist_ok=True)
        (self.folder / "logs" / name).write_text(log)

    def fail(self, **verbs: str) -> None:
        (self.folder / "fail.json").write_text(json.dumps(verbs))

    @property
    def calls(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in (self.folder / "calls.jsonl").read_text().splitlines()]

    def verbs(self) -> list[str]:
        return [call["arguments"][2] for call in self.calls]


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Server:
    folder, path = tmp_path / "server", tmp_path / "bin"
    folder.mkdir()
    path.mkdir()
    (path / "kubectl").write_text(f'#!/bin/sh\nexec "{sys.executable}" -I -S "{FAKE}" "$@"\n')
    (path / "kubectl").chmod(0o755)
    monkeypatch.setenv("PATH", f"{path}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("FAKE_KUBECTL", str(folder))
    return Server(folder)


def no_sleep(_: float) -> None:
    raise AssertionError("there is nothing to wait for")


@pytest.fixture
def launcher(server: Server) -> KubeRayLauncher:
    return KubeRayLauncher(target(), sleep=no_sleep)


def request(directory: str = "/runs/arith", **changes: Any) -> JobRequest:
    pods = (Pods(role="worker", count=2, gpus=8, cpus=96, memory_gib=1000, shm_gib=16),)
    given = {"id": ID, "run": "arith", "command": ("rlhf", "run", "--attempts", "5", "arith.yaml"), "pods": pods}
    return JobRequest(**{**given, "directories": (directory,), **changes})


# ------------------------------------------------------------------------------------------------ start


def test_a_job_is_created_once(launcher: KubeRayLauncher, server: Server) -> None:
    first, second = launcher.submit(request()), launcher.submit(request())
    assert (first.is_new, second.is_new) == (True, False)
    assert first.job.id == second.job.id == ID
    assert first.job.directories == ("/runs/arith",)
    assert list(server.objects("RayJob")) == [ID]
    assert list(server.objects("NetworkPolicy")) == [ID]
    assert server.objects("RayJob")[ID]["spec"] == render(request(), target())[-1]["spec"]


def test_two_submissions_at_once_make_one_job(server: Server) -> None:
    results: list[Submitted] = []
    threads = [
        threading.Thread(target=lambda: results.append(KubeRayLauncher(target()).submit(request()))) for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(result.is_new for result in results) == [False, False, False, True]
    assert len(server.objects("RayJob")) == 1


def test_the_name_comes_from_the_id_and_the_context_from_the_target(server: Server) -> None:
    long = "rlhf-" + "Long_Name." * 6 + "-1a2b3c4d"
    launcher = KubeRayLauncher(target(context="prod", namespace="team"))
    job = launcher.submit(request(id=long)).job
    assert job.id == long
    assert launcher.find(long) == job
    [name] = server.objects("RayJob")
    assert len(name) <= 47
    assert all(call["arguments"][:4] == ["--context", "prod", "--namespace", "team"] for call in server.calls)


def test_a_failed_job_is_started_again_under_the_next_name(launcher: KubeRayLauncher, server: Server) -> None:
    launcher.submit(request())
    server.status(ID, jobDeploymentStatus="Failed", jobStatus="FAILED", reason="AppFailed", message="exit code 4")
    again = launcher.submit(request())
    assert (again.is_new, again.job.id) == (True, f"{ID}-2")
    found = launcher.find(ID)
    assert found is not None
    assert found.id == f"{ID}-2"
    by_name = launcher.find(f"{ID}-2")
    assert by_name is not None
    assert by_name.id == f"{ID}-2"
    assert len(server.objects("NetworkPolicy")) == 1  # shared by both


def test_a_comment_in_the_recipe_changes_the_package_and_not_the_job(
    launcher: KubeRayLauncher, server: Server, tmp_path: Path
) -> None:
    for number, text in enumerate(("name: a\n", "# comment\nname: a\n")):
        root = tmp_path / str(number)
        root.mkdir()
        (root / "a.yaml").write_text(text)
        package = Package(root=root, files={"a.yaml": "x"}, bytes=10, digest=f"{number}" * 64)
        assert launcher.submit(request(package=package)).is_new
        server.status(f"{ID}-2" if number else ID, jobDeploymentStatus="Failed", jobStatus="FAILED")
    assert set(server.objects("RayJob")) == {ID, f"{ID}-2"}
    texts = {each["data"]["a.yaml"] for each in server.objects("ConfigMap").values()}
    assert texts == {"name: a\n", "# comment\nname: a\n"}


def test_a_job_goes_on_without_its_recipe(launcher: KubeRayLauncher, server: Server) -> None:
    assert isinstance(launcher, Resumer)
    launcher.submit(request())
    with pytest.raises(BadInput, match="cannot be resumed"):
        launcher.resume(ID)
    server.status(ID, jobDeploymentStatus="Failed", jobStatus="FAILED", message="exit code 5")
    again = launcher.resume(ID, ["rlhf", "resume", "/runs/arith"])
    assert (again.is_new, again.job.id, again.job.run) == (True, f"{ID}-2", "arith")
    spec = server.objects("RayJob")[f"{ID}-2"]["spec"]
    assert spec["entrypoint"].endswith("-- rlhf resume /runs/arith")
    assert "status" not in server.objects("RayJob")[f"{ID}-2"]


def test_an_unknown_job_is_named_with_those_that_exist(launcher: KubeRayLauncher) -> None:
    launcher.submit(request())
    assert launcher.find("rlhf-other-0") is None
    with pytest.raises(BadInput) as caught:
        launcher.stop("rlhf-other-0")
    assert ID in caught.value.problems[0].fix


def test_kubectl_s_words_are_in_the_error(launcher: KubeRayLauncher, server: Server) -> None:
    said = 'Error from server (Forbidden): rayjobs.ray.io is forbidden: User "eve" cannot list resource'
    server.fail(get=f"{said}\nmore")
    with pytest.raises(ClusterError) as caught:
        launcher.list()
    [problem] = caught.value.problems
    assert (problem.what, problem.why, problem.where) == ("kubectl get failed", said, "namespace rlhf")


def test_a_missing_kubectl_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ClusterError, match="kubectl is not installed"):
        KubeRayLauncher(target()).list()


def test_the_launcher_of_a_target(server: Server) -> None:
    assert isinstance(launcher_for(target()), KubeRayLauncher)


# ------------------------------------------------------------------------------------------------ states


def ray_job(status: dict[str, Any], **changes: Any) -> dict[str, Any]:
    on = target(queue="team-a") if changes.pop("queued", False) else target()
    job = render(request(), on)[-1]
    metadata = {**job["metadata"], "creationTimestamp": "2026-11-30T10:00:00Z", "uid": "u"} | changes.pop(
        "metadata", {}
    )
    return {**job, "metadata": metadata, "spec": {**job["spec"], **changes}, "status": status}


def condition(kind: str, status: str, message: str = "", reason: str = "") -> dict[str, str]:
    return {"type": kind, "status": status, "message": message, "reason": reason}


UNSCHEDULED = {
    "phase": "Pending",
    "conditions": [condition("PodScheduled", "False", "0/9 nodes are available: 9 Insufficient nvidia.com/gpu.")],
}
IMAGE_FAILS = {"waiting": {"reason": "ImagePullBackOff", "message": "no such image"}}


@pytest.mark.parametrize(
    ("status", "pods", "state", "reason"),
    [
        ({}, [], "STARTING", "waits for the KubeRay operator"),
        ({"jobDeploymentStatus": "Initializing"}, [], "STARTING", "its pods are being created"),
        (
            {"jobDeploymentStatus": "Initializing"},
            [{"phase": "Running"}, UNSCHEDULED],
            "STARTING",
            "1 of 2 pods run; 0/9 nodes are available: 9 Insufficient nvidia.com/gpu.",
        ),
        (
            {"jobDeploymentStatus": "Initializing"},
            [{"phase": "Pending", "initContainerStatuses": [{"state": IMAGE_FAILS}]}],
            "STARTING",
            "0 of 1 pods run; ImagePullBackOff: no such image",
        ),
        ({"jobDeploymentStatus": "Waiting"}, [], "STARTING", "its pods are being created"),
        ({"jobDeploymentStatus": "Running", "jobStatus": ""}, [], "STARTING", "the driver is being started"),
        ({"jobDeploymentStatus": "Running", "jobStatus": "PENDING"}, [], "STARTING", "the driver is being started"),
        ({"jobDeploymentStatus": "Running", "jobStatus": "RUNNING"}, [], "RUNNING", ""),
        (
            {"jobDeploymentStatus": "Retrying", "failed": 2, "message": "Ray head pod not found."},
            [],
            "PREEMPTED",
            "attempt 2 on a cluster of its own failed: Ray head pod not found.",
        ),
        ({"jobDeploymentStatus": "Complete", "jobStatus": "SUCCEEDED"}, [], "SUCCEEDED", ""),
        ({"jobDeploymentStatus": "Complete", "jobStatus": "STOPPED"}, [], "STOPPED", "a person asked for it"),
        (
            {
                "jobDeploymentStatus": "Failed",
                "jobStatus": "FAILED",
                "reason": "AppFailed",
                "message": "Job entrypoint command failed with exit code 5, last available logs",
            },
            [],
            "FAILED",
            "exit code 5: an alarm ended the run",
        ),
        (
            {"jobDeploymentStatus": "Failed", "reason": "SubmissionFailed", "message": "container ray-job-submitter"},
            [],
            "FAILED",
            "the command could not be handed to Ray: container ray-job-submitter",
        ),
        (
            {"jobDeploymentStatus": "Failed", "reason": "DeadlineExceeded"},
            [],
            "FAILED",
            "its deadline has passed",
        ),
        (
            {"jobDeploymentStatus": "ValidationFailed", "reason": "ValidationFailed", "message": "name is too long"},
            [],
            "FAILED",
            "KubeRay refuses the manifest: name is too long",
        ),
    ],
)
def test_states_of_kuberay(status: dict[str, Any], pods: Sequence[dict[str, Any]], state: str, reason: str) -> None:
    job = job_of(ray_job(status), pods=[{"status": pod} for pod in pods])
    assert (job.state, job.reason) == (JobState(state), reason)


@pytest.mark.parametrize(
    ("deployment", "conditions", "state", "reason"),
    [
        ("", None, "QUEUED", "waits in queue team-a"),
        (
            "Suspended",
            [condition("QuotaReserved", "False", "couldn't assign flavors: insufficient unused quota, 16 more needed")],
            "QUEUED",
            "couldn't assign flavors: insufficient unused quota, 16 more needed",
        ),
        ("Suspended", [condition("QuotaReserved", "True")], "STARTING", "Kueue has admitted it"),
        (
            "Suspending",
            [condition("Evicted", "True", "Preempted to accommodate a workload of a higher priority", "Preempted")],
            "PREEMPTED",
            "Kueue took its machines: Preempted to accommodate a workload of a higher priority",
        ),
        ("Running", [condition("Evicted", "True", "", "Preempted")], "PREEMPTED", "Kueue took its machines: Preempted"),
    ],
)
def test_states_of_kueue(deployment: str, conditions: list[dict[str, str]] | None, state: str, reason: str) -> None:
    workload = None if conditions is None else {"status": {"conditions": conditions}}
    job = job_of(ray_job({"jobDeploymentStatus": deployment, "jobStatus": "RUNNING"}, queued=True), workload)
    assert (job.state, job.reason) == (JobState(state), reason)


def test_a_run_that_was_stopped_has_not_failed() -> None:
    status = {"jobDeploymentStatus": "Failed", "jobStatus": "FAILED", "message": "failed with exit code 143"}
    assert job_of(ray_job(status)).state is JobState.stopped
    deleted = job_of(
        ray_job({"jobDeploymentStatus": "Running"}, metadata={"deletionTimestamp": "2026-11-30T11:00:00Z"})
    )
    assert (deleted.state, deleted.reason) == (JobState.stopped, "it is being deleted")


def test_times_and_codes_of_a_job() -> None:
    job = job_of(
        ray_job(
            {
                "jobDeploymentStatus": "Failed",
                "jobStatus": "FAILED",
                "message": "Job entrypoint command failed with exit code 4",
                "rayJobInfo": {"startTime": "2026-11-30T10:05:00Z", "endTime": "2026-11-30T12:00:00Z"},
                "endTime": "2026-11-30T12:00:05Z",
            }
        )
    )
    assert job.submitted is not None
    assert (job.started, job.ended) == (job.submitted + 300, job.submitted + 7205)
    assert (job.exit_code, job.engine_state) == (4, "Failed FAILED")


def test_a_queued_job_asks_kueue(server: Server) -> None:
    launcher = KubeRayLauncher(target(queue="team-a"))
    assert launcher.submit(request()).job.state is JobState.queued
    labels, owner = {"kueue.x-k8s.io/job-uid": f"uid-{ID}"}, [{"uid": f"uid-{ID}"}]
    metadata = {"name": "rayjob-x", "labels": labels, "ownerReferences": owner}
    waits = {"conditions": [condition("QuotaReserved", "False", "16 more needed")]}
    server.put({"kind": "Workload", "metadata": metadata, "status": waits})
    found = launcher.find(ID)
    assert found is not None
    assert (found.state, found.reason) == (JobState.queued, "16 more needed")
    assert launcher.list() == [found]


def test_jobs_are_listed_newest_first(launcher: KubeRayLauncher, server: Server) -> None:
    for name in ("a", "b", "c"):
        launcher.submit(request(id=f"rlhf-{name}-1a2b3c4d"))
    server.put({"kind": "RayJob", "metadata": {"name": "somebody-else's"}})
    assert [job.id for job in launcher.list()] == [f"rlhf-{name}-1a2b3c4d" for name in "cba"]


# ------------------------------------------------------------------------------------------------ logs


def running(launcher: KubeRayLauncher, server: Server, *, log: str = "", **changes: Any) -> Job:
    launcher.submit(request(**changes))
    server.status(ID, jobDeploymentStatus="Running", jobStatus="RUNNING")
    server.pod(f"{ID}-abcde", "head", log=log)
    job = launcher.find(ID)
    assert job is not None
    return job


def test_logs_are_those_of_the_container_that_submits(launcher: KubeRayLauncher, server: Server) -> None:
    running(launcher, server, log="step 1\nstep 2\n")
    assert "".join(launcher.logs(ID)) == "step 1\nstep 2\n"
    assert server.calls[-1]["arguments"][2:] == ["logs", f"{ID}-abcde-head", "-c", "ray-job-submitter"]


def test_following_goes_on_in_the_next_cluster(server: Server) -> None:
    first = KubeRayLauncher(target())
    running(first, server, log="step 1\n")
    changes: Iterator[Any] = iter(
        (
            lambda: server.status(ID, jobDeploymentStatus="Retrying", jobStatus="", rayClusterName=""),
            lambda: (
                server.status(ID, jobDeploymentStatus="Running", jobStatus="RUNNING", rayClusterName=f"{ID}-second"),
                server.pod(f"{ID}-second", "head", log="resumed\n"),
            ),
            lambda: server.status(
                ID, jobDeploymentStatus="Complete", jobStatus="SUCCEEDED", rayClusterName=f"{ID}-second"
            ),
        )
    )
    launcher = KubeRayLauncher(target(), sleep=lambda _: next(changes)())
    assert "".join(launcher.logs(ID, follow=True)) == "step 1\nresumed\n"


def test_logs_of_pods_that_are_gone_say_so(launcher: KubeRayLauncher, server: Server) -> None:
    launcher.submit(request())
    server.status(ID, jobDeploymentStatus="Complete", jobStatus="SUCCEEDED")
    [line] = launcher.logs(ID)
    assert "are gone" in line
    assert f"rlhf why {ID}" in line


# ------------------------------------------------------------------------------------------------ stop, execute


def test_a_running_job_gets_the_stop_file_and_no_new_cluster(
    launcher: KubeRayLauncher, server: Server, tmp_path: Path
) -> None:
    run = RunDirectory(tmp_path / "runs" / "arith")
    (run.path / "logs" / "attempt-1").mkdir(parents=True)
    run.resolved.write_text("{}")
    local = KubeRayLauncher(target(output_dir=str(tmp_path / "runs")), sleep=no_sleep)
    running(local, server, directories=(str(run.path),))
    local.stop(ID)
    asked = StopFile(run.path).read()
    assert asked is not None
    assert asked.cause == "user"
    job = server.objects("RayJob")[ID]
    assert job["spec"]["backoffLimit"] == 0  # before the stop file: KubeRay starts a failed job again
    assert server.verbs().index("patch") < server.verbs().index("exec")
    server.status(ID, jobDeploymentStatus="Failed", jobStatus="FAILED", message="exit code 143")
    ended = local.find(ID)
    assert ended is not None
    assert ended.state is JobState.stopped
    with pytest.raises(BadInput, match="cannot be stopped"):
        local.stop(ID)


def test_a_queued_job_is_deleted(server: Server) -> None:
    launcher = KubeRayLauncher(target(queue="team-a"))
    launcher.submit(request())
    launcher.stop(ID)
    assert server.objects("RayJob") == {}
    assert launcher.find(ID) is None


def test_a_job_that_cannot_be_asked_is_deleted_and_its_pods_save(launcher: KubeRayLauncher, server: Server) -> None:
    running(launcher, server)
    server.fail(exec="error: unable to upgrade connection: container not found")
    launcher.stop(ID)
    assert server.objects("RayJob") == {}


def test_a_comparison_is_deleted_because_it_has_many_runs(launcher: KubeRayLauncher, server: Server) -> None:
    running(launcher, server, command=("rlhf", "compare", "c.yaml", "attempts=5"))
    launcher.stop(ID)
    assert "exec" not in server.verbs()
    assert server.objects("RayJob") == {}


def test_a_command_runs_in_the_head_pod(launcher: KubeRayLauncher, server: Server) -> None:
    job = running(launcher, server)
    output = launcher.execute(job, ["--version"])
    assert output.exit_code == 0
    assert output.stdout.startswith("rlhf ")
    words = ["exec", f"{ID}-abcde-head", "-c", "ray", "--", "rlhf", "entry", "output", "--", "--version"]
    assert server.calls[-1]["arguments"][2:] == words


def test_a_command_that_fails_there_keeps_its_code_and_words(launcher: KubeRayLauncher, server: Server) -> None:
    job = running(launcher, server)
    output = launcher.execute(job, ["why", "/no/such/run"])
    assert output.exit_code == 2
    assert "/no/such/run" in output.stderr


def test_after_the_end_a_short_pod_looks_at_the_volume(launcher: KubeRayLauncher, server: Server) -> None:
    launcher.submit(request())
    server.status(ID, jobDeploymentStatus="Complete", jobStatus="SUCCEEDED")
    job = launcher.find(ID)
    assert job is not None
    assert launcher.execute(job, ["--version"]).stdout.startswith("rlhf ")
    assert server.objects("Pod") == {}
    [pod] = [json.loads(c["input"]) for c in server.calls if c["input"] and json.loads(c["input"])["kind"] == "Pod"]
    assert {"name": "runs", "persistentVolumeClaim": {"claimName": "rlhf-runs"}} in pod["spec"]["volumes"]
    [container] = pod["spec"]["containers"]
    assert container["securityContext"]["readOnlyRootFilesystem"]
    assert "nvidia.com/gpu" not in container["resources"]["limits"]
    assert "lifecycle" not in container


def test_an_image_without_this_program_is_named(launcher: KubeRayLauncher, server: Server) -> None:
    job = running(launcher, server)
    server.fail(exec='OCI runtime exec failed: exec: "rlhf": executable file not found in $PATH')
    with pytest.raises(ClusterError) as caught:
        launcher.execute(job, ["--version"])
    [problem] = caught.value.problems
    assert problem.what == "`rlhf --version` cannot be run on the cluster"
    assert "executable file not found" in problem.why


def test_no_secret_is_in_any_argument_or_manifest(server: Server) -> None:
    on: KubeRayTarget = target(secrets={"WANDB_API_KEY": "rlhf-wandb/key"})
    launcher = KubeRayLauncher(on, sleep=no_sleep)
    os.environ["WANDB_API_KEY"] = "canary-0123456789"
    try:
        job = running(launcher, server, secrets=on.secrets)
        launcher.execute(job, ["--version"])
    finally:
        del os.environ["WANDB_API_KEY"]
    assert "canary" not in (server.folder / "calls.jsonl").read_text()
    assert "canary" not in json.dumps(server.objects("RayJob"))
