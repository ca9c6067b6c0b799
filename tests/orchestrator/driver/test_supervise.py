"""Supervisor: when another attempt is started, what is reported, and that no process is left behind."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from orchestrator.driver import supervise
from orchestrator.driver.supervise import Ended, Supervisor, judge
from orchestrator.errors import Superseded
from orchestrator.rundir.directory import RunDirectory
from orchestrator.rundir.incidents import read_incidents
from orchestrator.rundir.stop import StopFile

FAKE_ATTEMPT = Path(__file__).parents[1] / "fake_attempt.py"


def ended(cause: str, reached: int, run: str = "grpo") -> Ended:
    return Ended(cause=cause, exit_code=4, reached=reached, run=run)


@pytest.mark.parametrize(
    ("now", "before", "left", "retry", "reason"),
    [
        (ended("worker_failed", 3), None, 2, True, "2 attempts left"),
        (ended("killed", 0), None, 1, True, "one attempt left"),
        (ended("worker_failed", 3), None, 0, False, "no attempts are left"),
        (ended("bad_input", 0), None, 2, False, "another attempt would fail in the same way: bad_input"),
        (ended("disk_full", 3), None, 2, False, "another attempt would fail in the same way: disk_full"),
        (ended("superseded", 3), None, 2, False, "another attempt would fail in the same way: superseded"),
        (ended("user", 3), None, 2, False, "a stop was asked for"),
        (ended("preempted", 3), None, 2, False, "a stop was asked for"),
        (ended("killed", 3), ended("worker_failed", 3), 2, False, "two attempts in a row ended after step 3, without"),
        (ended("killed", 0), ended("killed", 0), 2, False, "ended before the first step was done, without any"),
        (ended("killed", 4), ended("killed", 3), 2, True, "2 attempts left"),
        # It resumed from a checkpoint and got less far: another step, so perhaps another cause.
        (ended("killed", 2), ended("killed", 3), 2, True, "2 attempts left"),
        # It failed at the first step of the recipe's next stage: that is progress.
        (ended("killed", 0, run="dpo"), ended("killed", 0, run="base"), 2, True, "2 attempts left"),
    ],
)
def test_the_rule_for_further_attempts(now: Ended, before: Ended | None, left: int, retry: bool, reason: str) -> None:
    verdict = judge(now, before, attempts_left=left)
    assert verdict.retry == retry
    assert reason in verdict.reason


class SupervisedRun:
    """Supervisor of fake attempts with these endings, after it has ended, with its output."""

    def __init__(self, directory: Path, *endings: str, attempts: int = 3) -> None:
        self.lines: list[str] = []
        command = [sys.executable, str(FAKE_ATTEMPT), str(directory), *endings]
        self.code = Supervisor(command, [directory], attempts=attempts, say=self.lines.append).run()
        self.run = RunDirectory(directory)

    @property
    def exit(self) -> dict[str, Any]:
        return self.run.read_exit() or {}


def test_a_run_that_fails_and_is_killed_is_completed(tmp_path: Path) -> None:
    supervised = SupervisedRun(tmp_path / "run", "2:worker_failed", "4:kill", "done")
    assert supervised.code == 0
    assert (supervised.exit["cause"], supervised.exit["attempt"]) == ("completed", 3)
    assert supervised.lines == [
        "attempt 1 of 3 ended (worker_failed); 2 attempts left: starting attempt 2 of 3",
        "attempt 2 of 3 ended (killed); one attempt left: starting attempt 3 of 3",
    ]
    incidents = read_incidents(supervised.run.incidents)
    assert [(i.attempt, i.step, i.action) for i in incidents] == [(1, 2, "next attempt"), (2, 4, "next attempt")]
    assert incidents[0].what == "it was worker_failed"
    assert "was killed by SIGKILL" in incidents[1].what


def test_the_supervisor_writes_exit_json_if_the_driver_could_not(tmp_path: Path) -> None:
    supervised = SupervisedRun(tmp_path / "run", "1:kill", "3:kill", attempts=2)
    assert supervised.code == supervised.exit["exit_code"] == 128 + signal.SIGKILL
    assert (supervised.exit["cause"], supervised.exit["attempt"], supervised.exit["step"]) == ("killed", 2, 3)
    assert supervised.exit["first_cause"]["role"] == "driver"
    assert f"(pid {supervised.exit['first_cause']['pid']}) was killed by SIGKILL" in supervised.exit["message"]
    assert "giving up" in supervised.lines[-1]


def test_a_driver_that_exits_without_exit_json_is_followed_by_another(tmp_path: Path) -> None:
    supervised = SupervisedRun(tmp_path / "run", "1:quiet", "done")
    assert supervised.code == 0
    assert "without writing exit.json" in read_incidents(supervised.run.incidents)[0].what


@pytest.mark.parametrize(("cause", "code"), [("bad_input", 2), ("error", 1)])
def test_a_failure_that_would_repeat_is_not_retried(tmp_path: Path, cause: str, code: int) -> None:
    supervised = SupervisedRun(tmp_path / "run", f"1:{cause}", "done")
    assert (supervised.code, supervised.exit["attempt"]) == (code, 1)
    assert f"another attempt would fail in the same way: {cause}: giving up" in supervised.lines[0]


def test_two_attempts_that_end_at_the_same_step_are_the_last(tmp_path: Path) -> None:
    supervised = SupervisedRun(tmp_path / "run", "2:worker_failed", attempts=9)
    assert (supervised.code, supervised.exit["attempt"]) == (4, 2)
    assert "two attempts in a row ended after step 2, without any progress: giving up" in supervised.lines[-1]
    assert read_incidents(supervised.run.incidents)[-1].action == "gave up"


def test_the_exit_json_of_an_earlier_attempt_is_not_used(tmp_path: Path) -> None:
    directory = tmp_path / "run"
    subprocess.run([sys.executable, str(FAKE_ATTEMPT), str(directory), "2:worker_failed"], check=False)
    refuses = [sys.executable, "-c", "import sys; sys.exit(2)"]
    lines: list[str] = []
    assert Supervisor(refuses, [directory], attempts=3, say=lines.append).run() == 2
    assert lines == [
        "attempt 1 of 3 ended (bad_input); another attempt would fail in the same way: bad_input: giving up"
    ]


def test_a_request_between_the_door_and_the_first_attempt_counts(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    StopFile(tmp_path / "run").request(by="alice on node-3")
    supervised = SupervisedRun(tmp_path / "run", "2:worker_failed", "done")
    assert supervised.lines == ["attempt 1 of 3 ended (worker_failed); a stop was asked for: giving up"]


def test_nothing_is_written_for_a_driver_that_was_superseded(tmp_path: Path) -> None:
    supervised = SupervisedRun(tmp_path / "run", "2:superseded", "done")
    assert supervised.code == Superseded.exit_code
    assert supervised.lines == [
        "attempt 1 of 3 ended (superseded); another attempt would fail in the same way: superseded: giving up"
    ]
    assert supervised.exit == {}
    assert read_incidents(supervised.run.incidents) == []


def test_no_process_of_an_attempt_is_left_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(supervise, "CLEAN_UP_S", 0.2)  # the orphan does not end by itself
    supervised = SupervisedRun(tmp_path / "run", "1:orphan", "done")
    assert supervised.code == 0
    state = Path("/proc", (tmp_path / "run" / "orphan").read_text(), "stat")
    assert not state.exists() or state.read_text().split()[2] == "Z"


def test_after_a_request_to_stop_no_attempt_is_started(tmp_path: Path) -> None:
    """The worker failed before the attempt could end as requested. The next command starts afresh."""
    supervised = SupervisedRun(tmp_path / "run", "2:asked", "done")
    assert (supervised.code, supervised.exit["cause"], supervised.exit["attempt"]) == (4, "worker_failed", 1)
    assert supervised.lines == ["attempt 1 of 3 ended (worker_failed); a stop was asked for: giving up"]
    assert read_incidents(supervised.run.incidents)[0].detail == "a stop was asked for"
    assert SupervisedRun(tmp_path / "run", "", "done").code == 0


def test_a_signal_is_forwarded_once_and_ends_the_supervisor(tmp_path: Path) -> None:
    script = (
        "import sys; from pathlib import Path; from orchestrator.driver.supervise import Supervisor\n"
        f"command = [sys.executable, {str(FAKE_ATTEMPT)!r}, {str(tmp_path / 'run')!r}, '1:wait']\n"
        f"sys.exit(Supervisor(command, [Path({str(tmp_path / 'run')!r})], attempts=3, say=print).run())\n"
    )
    with subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True) as supervisor:
        assert supervisor.stdout is not None
        assert supervisor.stdout.readline() == "waiting\n"
        for _ in range(3):
            supervisor.terminate()
        assert supervisor.wait() == 143
        assert supervisor.stdout.read() == "", "no attempt is started after the signal"
    assert RunDirectory(tmp_path / "run").last_attempt == 1
