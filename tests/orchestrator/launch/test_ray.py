"""Jobs of a Ray cluster: states, metadata, logs without Ray's lines, commands executed there, and secrets by file."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from orchestrator.cluster.ray_jobs import Jobs
from orchestrator.errors import BadInput, ClusterError
from orchestrator.launch.base import Job, JobRequest, JobState, Output
from orchestrator.launch.entry import find_output, output_line, read_secrets, with_secrets
from orchestrator.launch.ray import RayLauncher
from orchestrator.launch.targets import RayTarget

DIRECTORIES = '["/shared/runs/base", "/shared/runs/a"]'


@dataclass
class Details:
    """Ray's details of a job."""

    submission_id: str
    status: str = "RUNNING"
    message: str = "Job is currently running."
    entrypoint: str = "rlhf run a.yaml"
    metadata: dict[str, str] = field(default_factory=lambda: {"rlhf_run": "a", "rlhf_directories": DIRECTORIES})
    job_id: str | None = None
    start_time: int | None = 1_700_000_000_000
    end_time: int | None = None
    driver_exit_code: int | None = None
    runtime_env: dict[str, Any] = field(default_factory=dict)


class Client:
    """Ray's client. Jobs that look end at once, with `log` as their log."""

    def __init__(self, *jobs: Details) -> None:
        self.jobs = {job.submission_id: job for job in jobs}
        self.log, self.code = "", 0
        self.events: list[tuple[str, str]] = []

    def submit_job(self, *, entrypoint: str, submission_id: str, runtime_env: Any, metadata: Any) -> str:
        details = Details(submission_id, entrypoint=entrypoint, metadata=metadata, runtime_env=runtime_env)
        if submission_id.startswith("look-"):
            details.status, details.driver_exit_code = "FAILED" if self.code else "SUCCEEDED", self.code
        self.jobs[submission_id] = details
        self.events.append(("submit", entrypoint))
        return submission_id

    def get_job_info(self, id: str) -> Details:
        if id not in self.jobs:
            raise RuntimeError(f"Request failed with status code 404: Job {id} does not exist")
        return self.jobs[id]

    def list_jobs(self) -> list[Details]:
        return list(self.jobs.values())

    def get_job_logs(self, id: str) -> str:
        return self.log

    async def tail_job_logs(self, id: str) -> Any:
        for piece in (
            "2026-11-30 03:15:49,406\tINFO job_manager.py:581 -- Runtime env is setting up.\nRunning entry",
            "point for job rlhf-a-1: rlhf run \\\na.yaml\nstep 1\n",
            "step 2\n",
        ):
            yield piece

    def stop_job(self, id: str) -> bool:
        self.events.append(("stop", id))
        return True

    def delete_job(self, id: str) -> bool:
        del self.jobs[id]
        return True


def launcher(client: Client) -> RayLauncher:
    jobs = Jobs(client, "http://head:8265", sleep=lambda _: None)
    return RayLauncher(RayTarget(engine="ray", address="head"), jobs=jobs)


def answer(client: Client, code: int, stdout: str = "", stderr: str = "") -> None:
    line = output_line(Output(exit_code=code, stdout=stdout, stderr=stderr))
    client.log, client.code = f"Running entrypoint for job look-1: rlhf entry output\n{line}\n", code


@pytest.mark.parametrize(
    ("status", "code", "state", "exit_code", "reason"),
    [
        ("PENDING", None, JobState.queued, None, "waiting"),
        ("RUNNING", None, JobState.running, None, ""),
        ("SUCCEEDED", 0, JobState.succeeded, 0, ""),
        ("FAILED", 4, JobState.failed, 4, "exit code 4: a worker failed"),
        ("FAILED", 143, JobState.stopped, 143, "exit code 143: asked to stop"),
        ("FAILED", None, JobState.failed, None, "waiting"),
        ("STOPPED", None, JobState.stopped, 143, "stopped through Ray"),
    ],
)
def test_states(status: str, code: int | None, state: JobState, exit_code: int | None, reason: str) -> None:
    client = Client(Details("rlhf-a-1", status, message="first\nwaiting", driver_exit_code=code))
    if status == "PENDING":
        client.jobs["rlhf-a-1"].message = "waiting"
    job = launcher(client).find("rlhf-a-1")
    assert job is not None
    assert (job.state, job.exit_code, job.reason) == (state, exit_code, reason)
    assert (job.run, job.directories, job.engine_state) == ("a", ("/shared/runs/base", "/shared/runs/a"), status)


def test_the_newest_repetition_is_found_and_only_jobs_of_rlhf_are_listed() -> None:
    jobs = [Details(id) for id in ("rlhf-a-1", "rlhf-a-1-2", "rlhf-a-1-3", "look-1", "raysubmit_x")]
    found = launcher(Client(*jobs)).find("rlhf-a-1")
    assert found is not None
    assert found.id == "rlhf-a-1-3"
    assert launcher(Client(*jobs)).find("rlhf-b") is None
    assert {job.id for job in launcher(Client(*jobs)).list()} == {"rlhf-a-1", "rlhf-a-1-2", "rlhf-a-1-3"}


def test_what_a_cluster_keeps_of_a_request() -> None:
    client = Client()
    request = JobRequest(
        id="rlhf-a-1",
        run="a",
        command=("rlhf", "run", "it's.yaml", "seed=1"),
        directories=("/shared/runs/a",),
        priority=3,
        secrets={"WANDB_API_KEY": "/run/secrets/wandb"},
    )
    assert launcher(client).submit(request).is_new
    job = client.jobs["rlhf-a-1"]
    command = "rlhf entry secrets WANDB_API_KEY=/run/secrets/wandb -- rlhf run 'it'\"'\"'s.yaml' seed=1"
    assert job.entrypoint == command
    assert job.metadata == {
        "rlhf_run": "a",
        "rlhf_recipe": "it's.yaml",
        "rlhf_directories": '["/shared/runs/a"]',
        "rlhf_priority": "3",
    }


RAY_SAYS = "2026-11-30 03:15:49,406\tINFO job_manager.py:581 -- Runtime env is setting up.\n"


def test_logs_have_no_line_of_ray() -> None:
    client = Client(Details("rlhf-a-1", entrypoint="rlhf run \\\na.yaml"))
    client.log = RAY_SAYS + "Running entrypoint for job rlhf-a-1: rlhf run \\\na.yaml\nstep 1\n"
    assert list(launcher(client).logs("rlhf-a-1")) == ["step 1\n"]
    assert "".join(launcher(client).logs("rlhf-a-1", follow=True)) == "step 1\nstep 2\n"
    client.log = "the environment cannot be set up\n"
    assert list(launcher(client).logs("rlhf-a-1")) == [client.log], "the job never began: Ray's lines say why"
    with pytest.raises(BadInput, match="unknown job rlhf-b-1"):
        list(launcher(client).logs("rlhf-b-1"))


def test_execute_returns_exactly_what_the_command_printed_and_leaves_no_job() -> None:
    client = Client(Details("rlhf-a-1"))
    answer(client, 2, "line\n\x1b[1m“é”\n", "rlhf: broken\n")
    client.log += "some thread of Ray says good-bye\n"
    job = Job(id="rlhf-a-1", state=JobState.running, run="a")
    output = launcher(client).execute(job, ["why", "/shared/it's"])
    assert output == Output(exit_code=2, stdout="line\n\x1b[1m“é”\n", stderr="rlhf: broken\n")
    assert client.events == [("submit", "rlhf entry output -- why '/shared/it'\"'\"'s'")]
    assert list(client.jobs) == ["rlhf-a-1"]


def test_a_cluster_without_this_program_says_so() -> None:
    client = Client()
    client.log, client.code = "Running entrypoint for job look-1: x\n/bin/sh: 1: rlhf: not found\n", 127
    with pytest.raises(ClusterError) as caught:
        launcher(client).execute(Job(id="", state=JobState.running, run="a"), ["why", "/a"])
    assert "exit code 127: Running" in str(caught.value)
    assert "/bin/sh: 1: rlhf: not found" in str(caught.value)
    assert not client.jobs


def test_stop_writes_the_stop_file_where_the_run_is() -> None:
    client = Client(Details("rlhf-a-1"))
    answer(client, 0)
    launcher(client).stop("rlhf-a-1")
    (event,) = client.events
    assert event[1].startswith("rlhf entry output -- stop /shared/runs/base /shared/runs/a --by ")
    assert event[1].endswith(" --job rlhf-a-1")


@pytest.mark.parametrize("case", ["queued", "no directory yet", "comparison", "no rlhf there"])
def test_ray_stops_what_has_no_run_or_several(case: str) -> None:
    client = Client(Details("rlhf-a-1"))
    answer(client, 2, stderr="not a run directory")
    if case == "queued":
        client.jobs["rlhf-a-1"].status = "PENDING"
    if case == "comparison":
        client.jobs["rlhf-a-1"].entrypoint = "rlhf compare both.yaml"
    if case == "no rlhf there":
        client.log = "not found"
    launcher(client).stop("rlhf-a-1")
    assert client.events[-1] == ("stop", "rlhf-a-1")
    assert len(client.events) == (1 if case in ("queued", "comparison") else 2)


def test_a_job_that_has_ended_cannot_be_stopped_and_one_that_runs_cannot_be_resumed() -> None:
    client = Client(Details("rlhf-a-1", "SUCCEEDED"), Details("rlhf-b-1"))
    with pytest.raises(BadInput, match="it has ended: SUCCEEDED"):
        launcher(client).stop("rlhf-a-1")
    for id, why in (("rlhf-a-1", "it has succeeded"), ("rlhf-b-1", "its state is RUNNING")):
        with pytest.raises(BadInput, match=why):
            launcher(client).resume(id)


def test_resume_starts_the_job_again_with_the_files_that_it_had() -> None:
    files = {"working_dir": "gcs://_ray_pkg_1.zip", "env_vars": {"RAY_JOB_STOP_WAIT_TIME_S": "600"}}
    entrypoint = "rlhf entry secrets A=/b -- rlhf run a.yaml"
    first = Details("rlhf-a-12345678", "FAILED", driver_exit_code=4, entrypoint=entrypoint, runtime_env=files)
    first.metadata["job_submission_id"] = "rlhf-a-12345678"
    client = Client(first)
    assert launcher(client).resume("rlhf-a-12345678").job.id == "rlhf-a-12345678-2"
    again = client.jobs["rlhf-a-12345678-2"]
    assert (again.entrypoint, again.runtime_env) == (entrypoint, files)
    assert again.metadata == {"rlhf_run": "a", "rlhf_directories": DIRECTORIES}
    again.status, again.driver_exit_code = "FAILED", 5
    third = launcher(client).resume("rlhf-a-12345678-2", ["rlhf", "resume", "/shared/runs/a", "policy.num_ranks=1"])
    assert third.job.id == "rlhf-a-12345678-3"
    assert client.jobs[third.job.id].entrypoint == (
        "rlhf entry secrets A=/b -- rlhf resume /shared/runs/a policy.num_ranks=1"
    )


# ------------------------------------------------------------------------------------- entry commands


def test_an_output_is_found_among_other_lines() -> None:
    output = Output(exit_code=5, stdout="a\nrlhf-output {}\n", stderr="é")
    line = output_line(output)
    assert line.isascii()
    assert "\n" not in line
    assert find_output(f"Ray says\n{line}\nRay says more\n") == output
    assert find_output("Ray says\n") is None
    assert find_output("rlhf-output [1]\n") is None


def test_secrets_are_files_of_the_target(tmp_path: Path) -> None:
    assert with_secrets(("rlhf", "run"), {}) == ("rlhf", "run")
    (tmp_path / "key").write_text(" value\n")
    (tmp_path / "empty").write_text("\n")
    assert read_secrets([f"KEY={tmp_path / 'key'}"]) == {"KEY": "value"}
    with pytest.raises(BadInput) as caught:
        read_secrets(["2=x", "KEY", f"KEY={tmp_path / 'empty'}", f"OTHER={tmp_path / 'nowhere'}"])
    assert [problem.what for problem in caught.value.problems] == [
        "not a secret",
        "not a secret",
        "the secret KEY is empty",
        "the secret OTHER cannot be read",
    ]


def rlhf(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-P", "-m", "orchestrator.cli", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


def test_the_command_gets_the_variable_and_everything_after_the_dashes(tmp_path: Path) -> None:
    (tmp_path / "key").write_text("value\n")
    script = "import os, sys; print(os.environ['KEY'], sys.argv[1:])"
    done = rlhf(
        "entry", "secrets", f"KEY={tmp_path / 'key'}", "--", sys.executable, "-c", script, "--by", "a", "--by=b"
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "value ['--by', 'a', '--by=b']\n", "")


def test_entry_output_captures_a_command(tmp_path: Path) -> None:
    done = rlhf("entry", "output", "--", "why", str(tmp_path), "--json")
    output = find_output(done.stdout)
    assert output is not None
    assert (done.returncode, output.exit_code, output.stderr) == (2, 2, "")
    error = json.loads(output.stdout)["error"]
    assert (error["exit_code"], error["cause"]) == (2, "cannot_resume")
    assert error["problems"][0]["what"] == "not a run directory"
    assert set(error["problems"][0]) == {"what", "where", "why", "fix"}


def test_words_of_a_job_that_come_before_the_lines_of_ray_are_shown() -> None:
    client = Client(Details("rlhf-a-1"))
    entrypoint = client.jobs["rlhf-a-1"].entrypoint
    client.log = f"{RAY_SAYS}first\nRunning entrypoint for job rlhf-a-1: {entrypoint}\nsecond\n"
    assert "".join(launcher(client).logs("rlhf-a-1")) == "first\nsecond\n"
