"""Jobs on Slurm: states in words, one job for equal submissions, stop, logs, and files that outlive Slurm's memory.

`fake_slurm.py` takes the place of Slurm's commands here; tests/cluster/ has a real Slurm.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from orchestrator.errors import BadInput, ClusterError
from orchestrator.launch import slurm
from orchestrator.launch.base import Job, JobRequest, JobState, Package
from orchestrator.launch.slurm import SlurmLauncher
from orchestrator.launch.slurm_states import Row, parse_rows, state_of
from orchestrator.launch.targets import SlurmTarget

ID = "rlhf-a-12345678"
FAKE = Path(__file__).with_name("fake_slurm.py")


class Cluster:
    """Directory with the fake commands and their jobs."""

    def __init__(self, directory: Path) -> None:
        self.directory, self.shared = directory / "slurm", directory / "shared"
        self.shared.mkdir()
        commands = self.directory / "bin"
        commands.mkdir(parents=True)
        for name in ("sbatch", "squeue", "scancel"):
            (commands / name).write_text(f"#!{sys.executable} -IS\n{FAKE.read_text('utf-8')}")
            (commands / name).chmod(0o755)

    @property
    def jobs(self) -> dict[str, dict[str, str]]:
        file = self.directory / "jobs.json"
        found: dict[str, dict[str, str]] = json.loads(file.read_text()) if file.exists() else {}
        return found

    def change(self, number: int, **values: str) -> None:
        self.directory.joinpath("jobs.json").write_text(
            json.dumps({**self.jobs, str(number): {**self.jobs[str(number)], **values}})
        )

    def forget(self, number: int) -> None:
        self.directory.joinpath("jobs.json").write_text(
            json.dumps({key: value for key, value in self.jobs.items() if key != str(number)})
        )

    def note(self, number: int, words: str) -> None:
        (self.shared / "jobs" / ID / f"state-{number}").write_text(words + "\n")

    @property
    def calls(self) -> list[str]:
        return (self.directory / "calls").read_text().splitlines()


@pytest.fixture
def cluster(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Cluster:
    made = Cluster(tmp_path)
    monkeypatch.setenv("FAKE_SLURM", str(made.directory))
    monkeypatch.setenv("PATH", f"{made.directory / 'bin'}:{os.environ['PATH']}")
    return made


@pytest.fixture
def launcher(cluster: Cluster) -> SlurmLauncher:
    return launcher_of(cluster)


def launcher_of(cluster: Cluster) -> SlurmLauncher:
    where = SlurmTarget(engine="slurm", gpus_per_node=0, cpus_per_node=2, work_dir=str(cluster.shared / "jobs"))
    return SlurmLauncher(where, sleep=lambda _: time.sleep(0.01))


def request(**changes: Any) -> JobRequest:
    return replace(JobRequest(id=ID, run="a", command=("rlhf", "run", "a.yaml")), **changes)


def found(launcher: SlurmLauncher) -> Job:
    job = launcher.find(ID)
    assert job is not None
    return job


# ------------------------------------------------------------------------------------------ start


def test_a_submitted_job_is_found_with_what_was_asked(
    launcher: SlurmLauncher, cluster: Cluster, tmp_path: Path
) -> None:
    root = tmp_path / "package"
    (root / "data").mkdir(parents=True)
    (root / "a.yaml").write_text("name: a\n")
    (root / "data" / "rows.jsonl").write_text("{}\n")
    package = Package(root=root, files={"a.yaml": "", "data/rows.jsonl": ""}, bytes=12, digest="")
    submitted = launcher.submit(request(package=package, directories=("/shared/runs/a",)))
    assert (submitted.is_new, submitted.job.id, submitted.job.state) == (True, ID, JobState.queued)
    shutil.rmtree(root)  # the submitter's copy is temporary
    again = found(launcher_of(cluster))
    assert (again.run, again.directories, again.engine_state) == ("a", ("/shared/runs/a",), "PENDING (1)")
    assert again.reason == "jobs with a higher priority are ahead of it"
    place = cluster.shared / "jobs" / ID
    assert sorted(str(p.relative_to(place)) for p in place.rglob("*") if p.is_file()) == [
        "job.sh", "package/a.yaml", "package/data/rows.jsonl", "request.json", "submitted",
    ]  # fmt: skip


def test_twenty_equal_submissions_at_once_are_one_job(cluster: Cluster) -> None:
    with ThreadPoolExecutor(20) as pool:
        submitted = list(pool.map(lambda _: launcher_of(cluster).submit(request()), range(20)))
    assert [s.is_new for s in submitted].count(True) == 1
    assert len(cluster.jobs) == 1


def test_a_submission_that_was_killed_after_sbatch_is_found(launcher: SlurmLauncher, cluster: Cluster) -> None:
    launcher.submit(request())
    (cluster.shared / "jobs" / ID / "submitted").unlink()  # it had no time to note the number
    assert launcher.submit(request()).is_new is False
    assert len(cluster.jobs) == 1


def test_the_lock_of_a_submission_that_was_killed_is_removed(launcher: SlurmLauncher, cluster: Cluster) -> None:
    place = cluster.shared / "jobs" / ID
    place.mkdir(parents=True)
    lock = place / "submit.lock"
    lock.write_text("of a process that is gone")
    old = time.time() - slurm.LOCK_S - 5
    os.utime(lock, (old, old))
    assert launcher.submit(request()).is_new
    assert not lock.exists()


def test_a_job_that_failed_is_started_again_and_one_that_succeeded_is_not(
    launcher: SlurmLauncher, cluster: Cluster
) -> None:
    launcher.submit(request())
    cluster.change(1, State="FAILED", exit_code=str(4 << 8))
    assert launcher.submit(request()).is_new
    assert found(launcher).engine_state == "PENDING (2)"
    cluster.change(2, State="COMPLETED")
    assert not launcher.submit(request()).is_new


def test_a_job_is_resumed_without_its_recipe_at_hand(launcher: SlurmLauncher, cluster: Cluster) -> None:
    launcher.submit(request(secrets={"KEY": "/secrets/key"}))
    with pytest.raises(BadInput, match="cannot be resumed"):
        launcher.resume(ID)
    cluster.change(1, State="FAILED", exit_code=str(5 << 8))
    assert launcher.resume(ID, ["rlhf", "resume", "/shared/runs/a", "policy.lr=1e-6"]).is_new
    script = (cluster.shared / "jobs" / ID / "job.sh").read_text()
    assert "command=(rlhf entry secrets KEY=/secrets/key -- rlhf resume /shared/runs/a policy.lr=1e-6)" in script


def test_a_refusal_is_told_in_slurms_words(launcher: SlurmLauncher, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FAKE_SLURM_REFUSES", "invalid partition specified: foo")
    with pytest.raises(ClusterError, match="invalid partition specified: foo"):
        launcher.submit(request())


def test_a_machine_without_slurm_is_named(launcher: SlurmLauncher, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(ClusterError, match="squeue is not on this machine"):
        launcher.submit(request())


# ------------------------------------------------------------------------------------------- look


@pytest.mark.parametrize(
    ("row", "note", "state", "words"),
    [
        ({"State": "PENDING", "Reason": "Resources"}, "", "QUEUED", "it is next, and waits for nodes"),
        ({"State": "PENDING", "Reason": "QOSMaxGRESPerUser"}, "", "QUEUED", "a limit of its account or QOS"),
        ({"State": "PENDING", "Reason": "BeginTime", "RestartCnt": "2"}, "requeued", "PREEMPTED", "starts it again"),
        ({"State": "CONFIGURING"}, "", "STARTING", "booting"),
        ({"State": "RUNNING"}, "starting", "STARTING", "it starts Ray on its nodes"),
        ({"State": "RUNNING"}, "running", "RUNNING", ""),
        ({"State": "COMPLETING"}, "running", "RUNNING", ""),
        ({"State": "COMPLETED"}, "ended 0", "SUCCEEDED", ""),
        ({"State": "FAILED", "exit_code": "36608"}, "", "STOPPED", "exit code 143: asked to stop"),
        ({"State": "FAILED", "exit_code": "768"}, "ended 3", "FAILED", "exit code 3: no cluster"),
        ({"State": "FAILED", "Reason": "JobLaunchFailure"}, "", "FAILED", "Slurm says JobLaunchFailure"),
        ({"State": "TIMEOUT"}, "running", "FAILED", "submit it again to go on"),
        ({"State": "OUT_OF_MEMORY"}, "running", "FAILED", "out of memory"),
        ({"State": "NODE_FAIL"}, "running", "FAILED", "a node failed"),
        ({"State": "CANCELLED"}, "", "STOPPED", "cancelled through Slurm"),
    ],
)
def test_states(
    launcher: SlurmLauncher, cluster: Cluster, row: Mapping[str, str], note: str, state: str, words: str
) -> None:
    launcher.submit(request())
    cluster.change(1, **row)
    if note:
        cluster.note(1, note)
    job = found(launcher)
    assert (job.state, words in job.reason) == (state, True), job.reason


@pytest.mark.parametrize(
    ("note", "state", "code"),
    [("ended 0", "SUCCEEDED", 0), ("ended 5", "FAILED", 5), ("ended 143", "STOPPED", 143), ("running", "FAILED", None)],
)
def test_a_job_that_slurm_has_forgotten(
    launcher: SlurmLauncher, cluster: Cluster, note: str, state: str, code: int | None
) -> None:
    launcher.submit(request())
    cluster.note(1, note)
    cluster.forget(1)
    job = found(launcher)
    assert (job.state, job.exit_code) == (state, code)
    assert [j.id for j in launcher.list()] == [ID]


def test_columns_of_other_versions() -> None:
    text = "7|rlhf-a|CANCELLED by 1000|None|0|1795999255|N/A|n/a|143:0|\nbroken line\n"
    assert parse_rows(text) == [
        Row(
            number=7, name="rlhf-a", state="CANCELLED", reason="None", restarts=0, head="", started=1795999255.0,
            exit_code=143,
        )
    ]  # fmt: skip
    assert parse_rows("8|rlhf-b|FAILED|NonZeroExitCode|0|1|2|n1|0:9|\n")[0].exit_code == 128 + 9


def test_a_state_that_is_not_known_yet_counts_as_running() -> None:
    row = Row(number=1, name="rlhf-a", state="STAGE_OUT", reason="", restarts=0, head="n1")
    assert state_of(row, running=True, stopped=False)[0] is JobState.running


def test_unknown_jobs(launcher: SlurmLauncher) -> None:
    assert launcher.find("rlhf-nothing") is None
    assert launcher.list() == []
    for ask in (launcher.stop, launcher.resume, lambda id: list(launcher.logs(id))):
        with pytest.raises(BadInput, match="unknown job rlhf-nothing"):
            ask("rlhf-nothing")


def test_logs_grow_until_the_job_ends(cluster: Cluster) -> None:
    log = cluster.shared / "jobs" / ID / "job-1.log"
    pieces = iter(["step 1\n", "step 2\n"])

    def grow(_: float) -> None:
        if (piece := next(pieces, None)) is not None:
            with log.open("a") as file:
                file.write(piece)
        else:
            cluster.change(1, State="COMPLETED")

    launcher = launcher_of(cluster)
    launcher.submit(request())
    assert list(launcher.logs(ID)) == [], "there is no output before the job starts"
    launcher._sleep = grow
    assert "".join(launcher.logs(ID, follow=True)) == "step 1\nstep 2\n"


# ------------------------------------------------------------------------------- stop and execute


def test_a_waiting_job_is_cancelled(launcher: SlurmLauncher, cluster: Cluster) -> None:
    launcher.submit(request())
    launcher.stop(ID)
    assert cluster.calls[-1] == "scancel 1"
    assert found(launcher).state is JobState.stopped
    with pytest.raises(BadInput, match="it has ended: STOPPED"):
        launcher.stop(ID)


def test_a_running_job_is_told_and_not_started_again(launcher: SlurmLauncher, cluster: Cluster) -> None:
    launcher.submit(request())
    cluster.change(1, State="RUNNING", BatchHost="n1")
    launcher.stop(ID)
    assert cluster.calls[-1] == "scancel --batch --signal=TERM 1"
    assert (cluster.shared / "jobs" / ID / "stop").exists()
    cluster.change(1, State="FAILED", exit_code=str(143 << 8))
    assert found(launcher).state is JobState.stopped
    launcher.submit(request())
    assert not (cluster.shared / "jobs" / ID / "stop").exists(), "the new job is not the one that was stopped"


def test_a_command_is_executed_here_where_the_run_is_visible(launcher: SlurmLauncher, cluster: Cluster) -> None:
    launcher.submit(request(directories=(str(cluster.shared / "a"),)))
    output = launcher.execute(found(launcher), ["--version"])
    assert output.exit_code == 0
    assert output.stdout.startswith("rlhf ")


def test_a_command_is_refused_where_nobody_sees_the_run(launcher: SlurmLauncher) -> None:
    launcher.submit(request(directories=("/nowhere/runs/a",)))
    for job in (found(launcher), Job(id="", state=JobState.running, run="a", directories=("/nowhere/runs/a",))):
        with pytest.raises(ClusterError, match="not visible here"):
            launcher.execute(job, ["why", "/nowhere/runs/a"])
