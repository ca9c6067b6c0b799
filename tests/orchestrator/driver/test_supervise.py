"""Attempt after attempt: which ends are gone on from, what is said, and that nothing stays behind."""

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

LIFE = Path(__file__).parents[1] / "fake_attempt.py"


def ended(cause: str, reached: int, run: str = "grpo") -> Ended:
    return Ended(cause=cause, exit_code=4, reached=reached, run=run)


@pytest.mark.parametrize(
    ("now", "before", "left", "go_on", "reason"),
    [
        (ended("worker_failed", 3), None, 2, True, "2 attempts left"),
        (ended("killed", 0), None, 1, True, "one attempt left"),
        (ended("worker_failed", 3), None, 0, False, "no attempts are left"),
        (ended("bad_input", 0), None, 2, False, "another attempt would meet the same: bad_input"),
        (ended("disk_full", 3), None, 2, False, "another attempt would meet the same: disk_full"),
        (ended("superseded", 3), None, 2, False, "another attempt would meet the same: superseded"),
        (ended("user", 3), None, 2, False, "another attempt would meet the same: user"),
        (ended("killed", 3), ended("worker_failed", 3), 2, False, "two attempts in a row ended after step 3, without"),
        (ended("killed", 0), ended("killed", 0), 2, False, "ended before the first step was done, without any"),
        (ended("killed", 4), ended("killed", 3), 2, True, "2 attempts left"),
        # It went back to a checkpoint and came less far: another place, so perhaps another cause.
        (ended("killed", 2), ended("killed", 3), 2, True, "2 attempts left"),
        # The next stage of a recipe is at its first step: that is progress.
        (ended("killed", 0, run="dpo"), ended("killed", 0, run="base"), 2, True, "2 attempts left"),
    ],
)
def test_the_rule(now: Ended, before: Ended | None, left: int, go_on: bool, reason: str) -> None:
    verdict = judge(now, before, attempts_left=left)
    assert verdict.go_on == go_on
    assert reason in verdict.reason


class Told:
    """What a supervisor of `endings` came to."""

    def __init__(self, directory: Path, *endings: str, attempts: int = 3) -> None:
        self.said: list[str] = []
        command = [sys.executable, str(LIFE), str(directory), *endings]
        self.code = Supervisor(command, [directory], attempts=attempts, say=self.said.append).run()
        self.run = RunDirectory(directory)

    @property
    def exit(self) -> dict[str, Any]:
        return self.run.read_exit() or {}


def test_a_run_that_fails_and_is_killed_comes_to_its_end(tmp_path: Path) -> None:
    told = Told(tmp_path / "run", "2:worker_failed", "4:kill", "done")
    assert told.code == 0
    assert (told.exit["cause"], told.exit["attempt"]) == ("completed", 3)
    assert told.said == [
        "attempt 1 of 3 ended (worker_failed); 2 attempts left: starting attempt 2 of 3",
        "attempt 2 of 3 ended (killed); one attempt left: starting attempt 3 of 3",
    ]
    incidents = read_incidents(told.run.incidents)
    assert [(i.attempt, i.step, i.action) for i in incidents] == [(1, 2, "next attempt"), (2, 4, "next attempt")]
    assert incidents[0].what == "it was worker_failed"
    assert "was killed by SIGKILL" in incidents[1].what


def test_the_last_exit_is_told_by_the_supervisor_where_the_driver_could_not(tmp_path: Path) -> None:
    told = Told(tmp_path / "run", "1:kill", "3:kill", attempts=2)
    assert told.code == told.exit["exit_code"] == 128 + signal.SIGKILL
    assert (told.exit["cause"], told.exit["attempt"], told.exit["step"]) == ("killed", 2, 3)
    assert told.exit["first_cause"]["role"] == "driver"
    assert f"(pid {told.exit['first_cause']['pid']}) was killed by SIGKILL" in told.exit["message"]
    assert "giving up" in told.said[-1]


def test_a_driver_that_ends_without_a_word_is_followed_by_another(tmp_path: Path) -> None:
    told = Told(tmp_path / "run", "1:quiet", "done")
    assert told.code == 0
    assert "without a word" in read_incidents(told.run.incidents)[0].what


@pytest.mark.parametrize(("cause", "code"), [("bad_input", 2), ("error", 1)])
def test_what_would_be_met_again_is_not_tried_again(tmp_path: Path, cause: str, code: int) -> None:
    told = Told(tmp_path / "run", f"1:{cause}", "done")
    assert (told.code, told.exit["attempt"]) == (code, 1)
    assert f"another attempt would meet the same: {cause}: giving up" in told.said[0]


def test_two_attempts_that_come_to_the_same_step_are_the_last(tmp_path: Path) -> None:
    told = Told(tmp_path / "run", "2:worker_failed", attempts=9)
    assert (told.code, told.exit["attempt"]) == (4, 2)
    assert "two attempts in a row ended after step 2, without any progress: giving up" in told.said[-1]
    assert read_incidents(told.run.incidents)[-1].action == "gave up"


def test_an_exit_of_an_attempt_before_is_not_taken_for_this_one(tmp_path: Path) -> None:
    directory = tmp_path / "run"
    subprocess.run([sys.executable, str(LIFE), str(directory), "2:worker_failed"], check=False)
    refuses = [sys.executable, "-c", "import sys; sys.exit(2)"]
    said: list[str] = []
    assert Supervisor(refuses, [directory], attempts=3, say=said.append).run() == 2
    assert said == ["attempt 1 of 3 ended (bad_input); another attempt would meet the same: bad_input: giving up"]


def test_nothing_is_written_down_for_a_driver_that_was_superseded(tmp_path: Path) -> None:
    told = Told(tmp_path / "run", "2:superseded", "done")
    assert told.code == Superseded.exit_code
    assert told.said == [
        "attempt 1 of 3 ended (superseded); another attempt would meet the same: superseded: giving up"
    ]
    assert told.exit == {}
    assert read_incidents(told.run.incidents) == []


def test_no_process_of_an_attempt_stays_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(supervise, "CLEAN_UP_S", 0.2)  # it will not go by itself
    told = Told(tmp_path / "run", "1:orphan", "done")
    assert told.code == 0
    state = Path("/proc", (tmp_path / "run" / "orphan").read_text(), "stat")
    assert not state.exists() or state.read_text().split()[2] == "Z"


def test_a_signal_is_handed_on_and_ends_it_all(tmp_path: Path) -> None:
    script = (
        "import sys; from pathlib import Path; from orchestrator.driver.supervise import Supervisor\n"
        f"command = [sys.executable, {str(LIFE)!r}, {str(tmp_path / 'run')!r}, '1:wait']\n"
        f"sys.exit(Supervisor(command, [Path({str(tmp_path / 'run')!r})], attempts=3, say=print).run())\n"
    )
    with subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True) as supervisor:
        assert supervisor.stdout is not None
        assert supervisor.stdout.readline() == "waiting\n"
        supervisor.terminate()
        assert supervisor.wait() == 143
        assert supervisor.stdout.read() == "", "it was asked to end: nothing is started, nothing is to be said"
    assert RunDirectory(tmp_path / "run").last_attempt == 1
