"""Hook of a pod that is to end, and guard of a job that its engine starts again."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from orchestrator.launch.pod import ended_by_alarm, preempt, wait_until_free
from orchestrator.rundir.directory import JOB, RunDirectory
from orchestrator.rundir.stop import StopFile


def begun(path: Path, attempt: int = 1) -> RunDirectory:
    """Return a run directory whose attempt has begun."""
    (path / "logs" / f"attempt-{attempt}").mkdir(parents=True)
    return RunDirectory(path)


def end(run: RunDirectory, *, cause: str, exit_code: int, message: str = "m") -> None:
    run.write_exit(cause=cause, message=message, exit_code=exit_code, attempt=run.last_attempt, step=3)


def no_sleep(_: float) -> None:
    raise AssertionError("there is nothing to wait for")


def test_a_pod_that_ends_asks_the_run_and_waits_for_it(tmp_path: Path) -> None:
    run, asked = begun(tmp_path / "a"), []

    def driver(_: float) -> None:
        asked.append(StopFile(run.path).read())
        end(run, cause="preempted", exit_code=143)

    assert preempt([tmp_path / "not begun", run.path], 30.0, sleep=driver) == []
    assert asked[0] is not None
    assert asked[0].cause == "preempted"
    assert "Kubernetes" in asked[0].by


def test_a_pod_that_ends_leaves_ended_runs_alone(tmp_path: Path) -> None:
    done, failed = begun(tmp_path / "done"), begun(tmp_path / "failed")
    end(done, cause="completed", exit_code=0)
    (done.path / "model").mkdir()
    end(failed, cause="worker_failed", exit_code=4)
    assert preempt([done.path, failed.path, tmp_path / "later"], 30.0, sleep=no_sleep) == []
    assert [StopFile(run.path).read() for run in (done, failed)] == [None, None]


def test_an_exit_of_an_earlier_attempt_is_not_the_end(tmp_path: Path) -> None:
    run = begun(tmp_path / "a")
    end(run, cause="worker_failed", exit_code=4)
    begun(run.path, attempt=2)
    assert [late.path for late in preempt([run.path], 0.0, sleep=no_sleep)] == [run.path]
    assert StopFile(run.path).read() is not None


def test_an_alarm_ends_a_job_for_good(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = begun(tmp_path / "a")
    monkeypatch.setenv(JOB, "rlhf-a-1")
    end(run, cause="alarm", exit_code=5, message="alarm kl at step 3, saw 9\nmore")
    assert json.loads(run.exit.read_text())["job"] == "rlhf-a-1"
    directories = [tmp_path / "base", run.path]
    assert ended_by_alarm(directories, {JOB: "rlhf-a-1"}) == "alarm kl at step 3, saw 9"
    assert ended_by_alarm(directories, {JOB: "rlhf-a-1-2"}) is None  # a person has submitted it again
    assert ended_by_alarm(directories, {}) is None


def test_other_ends_do_not_stop_another_start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(JOB, "rlhf-a-1")
    run = begun(tmp_path / "a")
    for code in (1, 3, 4, 143):
        end(run, cause="x", exit_code=code)
        assert ended_by_alarm([run.path], os.environ) is None


def test_nobody_is_waited_for_where_nobody_holds_the_run(tmp_path: Path) -> None:
    assert wait_until_free([begun(tmp_path / "a").path, tmp_path / "b"], 30.0, sleep=no_sleep) is None


def test_the_next_driver_waits_for_the_one_before(tmp_path: Path) -> None:
    run, waits = begun(tmp_path / "a"), []
    with run.held():
        assert wait_until_free([run.path], 0.0, sleep=waits.append) is not None
    with run.held():

        def release(_: float) -> None:
            waits.append(1.0)
            (run.path / "lock").unlink()  # as the end of that process does for others

        assert wait_until_free([run.path], 30.0, sleep=release) is None
    assert waits == [1.0]


def _entry(*words: str, environment: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "orchestrator.cli", "entry", *words],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        env={**os.environ, **(environment or {})},
    )


def test_the_guard_becomes_the_command_with_its_own_dashes(tmp_path: Path) -> None:
    run = begun(tmp_path / "a")
    inner = ["env", sys.executable, "-c", "import sys; print(sys.argv[1:])", "--", "rlhf", "run", "--attempts", "5"]
    done = _entry("guard", "--wait", "600", str(run.path), "--", *inner)
    assert done.stdout.strip() == "['--', 'rlhf', 'run', '--attempts', '5']", done.stderr


def test_the_guard_ends_a_job_again_that_an_alarm_has_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = begun(tmp_path / "a")
    monkeypatch.setenv(JOB, "rlhf-a-1")
    end(run, cause="alarm", exit_code=5, message="alarm kl at step 3")
    done = _entry("guard", str(run.path), "--", "echo", "started", environment={JOB: "rlhf-a-1"})
    assert (done.returncode, done.stdout) == (5, "not started again, an alarm ended the run: alarm kl at step 3\n")
    again = _entry("guard", str(run.path), "--", "echo", "started", environment={JOB: "rlhf-a-1-2"})
    assert (again.returncode, again.stdout) == (0, "started\n")


def test_the_hook_ends_at_once_where_nothing_runs(tmp_path: Path) -> None:
    done = _entry("preempt", str(tmp_path / "base"), str(tmp_path / "a"), "--wait", "540")
    assert (done.returncode, done.stdout) == (0, "")


def test_the_hook_names_a_run_that_did_not_end_in_time(tmp_path: Path) -> None:
    run = begun(tmp_path / "a")
    done = _entry("preempt", str(run.path), "--wait", "0")
    assert (done.returncode, done.stdout) == (1, "a: no exit.json after 0 s\n")
    assert StopFile(run.path).read() is not None
