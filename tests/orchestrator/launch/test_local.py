"""Jobs of this machine, as real processes: started once, found again, stopped, resumed, and told from reused pids."""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from orchestrator.errors import BadInput
from orchestrator.launch.base import Job, JobRequest, JobState, Package
from orchestrator.launch.local import LOST, LocalLauncher, state_directory


@pytest.fixture
def local(tmp_path: Path) -> LocalLauncher:
    return LocalLauncher(tmp_path / "state" / "jobs")


def request(script: str, id: str = "rlhf-a-12345678", **options: object) -> JobRequest:
    return JobRequest(id=id, run="a", command=(sys.executable, "-c", script), **options)  # type: ignore[arg-type]


def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def ended(local: LocalLauncher, id: str) -> Job:
    until(lambda: (job := local.find(id)) is not None and job.state.is_finished)
    job = local.find(id)
    assert job is not None
    return job


def started(local: LocalLauncher, id: str) -> None:
    until(lambda: "started" in "".join(local.logs(id)))


def test_a_job_runs_in_the_background_and_is_found_by_another_process(local: LocalLauncher, tmp_path: Path) -> None:
    submitted = local.submit(request("print('hello'); raise SystemExit(4)", directories=("/shared/runs/a",)))
    assert (submitted.is_new, submitted.job.id) == (True, "rlhf-a-12345678")
    assert list(local.logs("rlhf-a-12345678", follow=True)) == ["hello\n"]
    job = ended(LocalLauncher(tmp_path / "state" / "jobs"), "rlhf-a-12345678")
    assert (job.state, job.exit_code, job.reason) == (JobState.failed, 4, "exit code 4: a worker failed")
    assert (job.run, job.directories) == ("a", ("/shared/runs/a",))
    assert job.ended is not None
    assert job.started is not None
    assert job.ended >= job.started
    assert (tmp_path / "state" / "jobs").stat().st_mode & 0o077 == 0, "logs are nobody else's business"


def test_equal_submissions_at_the_same_time_are_one_job(local: LocalLauncher, tmp_path: Path) -> None:
    script = f"open({str(tmp_path / 'count')!r}, 'a').write('x')"
    with ThreadPoolExecutor(8) as pool:
        submitted = list(pool.map(lambda _: local.submit(request(script)), range(8)))
    assert [s.is_new for s in submitted].count(True) == 1
    assert ended(local, "rlhf-a-12345678").state is JobState.succeeded
    assert not local.submit(request(script)).is_new
    assert (tmp_path / "count").read_text() == "x"
    assert [path.name for path in (tmp_path / "state" / "jobs").iterdir()] == ["rlhf-a-12345678"]


def test_a_job_that_failed_is_started_again_under_a_new_number(local: LocalLauncher) -> None:
    local.submit(request("raise SystemExit(1)"))
    ended(local, "rlhf-a-12345678")
    again = local.submit(request("print('second')"))
    assert (again.is_new, again.job.id) == (True, "rlhf-a-12345678-2")
    assert ended(local, "rlhf-a-12345678").id == "rlhf-a-12345678-2", "the newest repetition is shown"
    assert [job.id for job in local.list()] == ["rlhf-a-12345678-2", "rlhf-a-12345678"]


def test_stop_sends_sigterm_once_and_the_job_may_finish_what_it_does(local: LocalLauncher) -> None:
    script = (
        "import signal, sys, time\n"
        "signal.signal(signal.SIGTERM, lambda *_: (print('saved', flush=True), sys.exit(143)))\n"
        "print('started', flush=True)\n"
        "time.sleep(60)"
    )
    local.submit(request(script))
    started(local, "rlhf-a-12345678")
    local.stop("rlhf-a-12345678")
    job = ended(local, "rlhf-a-12345678")
    assert (job.state, job.exit_code) == (JobState.stopped, 143)
    assert "".join(local.logs(job.id)) == "started\nsaved\n"
    with pytest.raises(BadInput, match="it has ended: STOPPED"):
        local.stop(job.id)


def test_a_stopped_job_is_resumed_with_its_command_or_another(local: LocalLauncher) -> None:
    local.submit(request("raise SystemExit(5)"))
    ended(local, "rlhf-a-12345678")
    assert local.resume("rlhf-a-12345678").job.id == "rlhf-a-12345678-2"
    assert ended(local, "rlhf-a-12345678").exit_code == 5
    third = local.resume("rlhf-a-12345678", [sys.executable, "-c", "print('other')"])
    assert third.job.id == "rlhf-a-12345678-3"
    assert ended(local, "rlhf-a-12345678").state is JobState.succeeded
    with pytest.raises(BadInput, match="it has succeeded"):
        local.resume("rlhf-a-12345678")


def test_a_job_outlives_its_keeper_and_a_killed_one_is_lost(local: LocalLauncher, tmp_path: Path) -> None:
    local.submit(request("import time; print('started', flush=True); time.sleep(60)"))
    started(local, "rlhf-a-12345678")
    directory = tmp_path / "state" / "jobs" / "rlhf-a-12345678"
    keeper, child = (json.loads((directory / f"{n}.json").read_text())["pid"] for n in ("keeper", "child"))
    os.kill(keeper, signal.SIGKILL)
    os.waitpid(keeper, 0)
    job = local.find("rlhf-a-12345678")
    assert job is not None
    assert job.state is JobState.running
    os.kill(child, signal.SIGKILL)
    job = ended(local, "rlhf-a-12345678")
    assert (job.state, job.exit_code) == (JobState.failed, LOST)
    assert "killed" in job.reason


@pytest.mark.parametrize("field", ["ticks", "boot"])
def test_a_pid_that_was_used_again_is_another_process(local: LocalLauncher, tmp_path: Path, field: str) -> None:
    """Check with the identity of this process: another start time, or another boot, is another process."""
    from orchestrator.launch.local import _identity

    directory = tmp_path / "state" / "jobs" / "rlhf-a-1"
    directory.mkdir(parents=True)
    (directory / "job.json").write_text(json.dumps({"id": "rlhf-a-1", "run": "a", "submitted": time.time()}))
    mine = _identity(os.getpid())
    (directory / "keeper.json").write_text(json.dumps(mine))
    job = local.find("rlhf-a-1")
    assert job is not None
    assert job.state is JobState.starting
    (directory / "keeper.json").write_text(json.dumps(mine | {field: 1 if field == "ticks" else "another"}))
    job = local.find("rlhf-a-1")
    assert job is not None
    assert job.state is JobState.failed


def test_a_job_that_was_never_started_does_not_hold_its_id_for_ever(local: LocalLauncher, tmp_path: Path) -> None:
    directory = tmp_path / "state" / "jobs" / "rlhf-a-12345678"
    directory.mkdir(parents=True)
    (directory / "job.json").write_text(json.dumps({"id": "rlhf-a-12345678", "submitted": time.time() - 3600}))
    job = local.find("rlhf-a-12345678")
    assert job is not None
    assert (job.state, job.reason) == (JobState.failed, "it was never started")
    assert local.submit(request("pass")).job.id == "rlhf-a-12345678-2"
    ended(local, "rlhf-a-12345678")


def test_a_package_is_copied_and_the_command_starts_in_it(local: LocalLauncher, tmp_path: Path) -> None:
    (tmp_path / "package").mkdir()
    (tmp_path / "package" / "data.txt").write_text("shipped")
    package = Package(root=tmp_path / "package", files={"data.txt": "0"}, bytes=7, digest="1")
    local.submit(request("import time; time.sleep(0.5); print(open('data.txt').read())", package=package))
    (tmp_path / "package" / "data.txt").unlink()
    assert list(local.logs("rlhf-a-12345678", follow=True)) == ["shipped\n"]


def test_no_secret_is_in_the_state_or_the_command_line(local: LocalLauncher, tmp_path: Path) -> None:
    (tmp_path / "key").write_text("c4nary-c4nary\n")
    script = (
        "import os, time\n"
        "print('started', len(os.environ['WANDB_API_KEY']), flush=True)\n"
        "print(open('/proc/self/cmdline').read().count('c4' + 'nary'), flush=True)\n"
        "time.sleep(60)"
    )
    local.submit(request(script, secrets={"WANDB_API_KEY": str(tmp_path / "key")}))
    until(lambda: "".join(local.logs("rlhf-a-12345678")) == "started 13\n0\n")
    written = [path.read_text() for path in (tmp_path / "state").rglob("*") if path.is_file()]
    lines = [path.read_text("utf-8", "replace") for path in Path("/proc").glob("[0-9]*/cmdline")]
    assert not [text for text in written + lines if "c4nary-c4nary" in text]
    local.stop("rlhf-a-12345678")
    assert ended(local, "rlhf-a-12345678").state is JobState.stopped


def test_a_secret_that_is_missing_ends_the_job_with_its_name(local: LocalLauncher, tmp_path: Path) -> None:
    local.submit(request("pass", secrets={"WANDB_API_KEY": str(tmp_path / "nowhere")}))
    job = ended(local, "rlhf-a-12345678")
    log = "".join(local.logs(job.id))
    assert job.exit_code == 2
    assert f"{tmp_path / 'nowhere'}: the secret WANDB_API_KEY cannot be read" in log


def test_execute_gives_output_and_exit_code(local: LocalLauncher) -> None:
    job = Job(id="rlhf-a-1", state=JobState.running, run="a")
    output = local.execute(job, ["why", "/nowhere/a"])
    assert (output.exit_code, output.stdout) == (2, "")
    assert "not a run directory" in output.stderr


def test_unknown_jobs_and_names_that_lead_elsewhere(local: LocalLauncher, tmp_path: Path) -> None:
    (tmp_path / "state" / "jobs").mkdir(parents=True)
    (tmp_path / "state" / "job.json").write_text('{"id": "x"}')
    assert local.find("../") is None
    assert local.find("rlhf-b") is None
    with pytest.raises(BadInput, match="unknown job rlhf-b"):
        list(local.logs("rlhf-b"))


def test_the_state_has_a_place(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("RLHF_STATE", str(tmp_path))
    assert state_directory() == tmp_path / "jobs"
    monkeypatch.delenv("RLHF_STATE")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert state_directory() == tmp_path / ".local/state/rlhf/jobs"
