"""Several runs at a time: by devices, by number, and never two that train one earlier stage. Real processes."""

from __future__ import annotations

import signal
import sys
from pathlib import Path

import pytest

from orchestrator.compare.schedule import Job, Scheduler, Stage
from orchestrator.driver.supervise import child_command

STAY = "import pathlib, sys, time\nwhile not pathlib.Path(sys.argv[1]).exists(): time.sleep(0.01)"


class Runs:
    """Jobs that run until the test lets them end, and the order in which they started and ended."""

    def __init__(self, path: Path) -> None:
        self.path, self.jobs, self.events = path, list[Job](), list[str]()
        self.codes: dict[int, int] = {}

    def add(self, *stages: str, devices: float = 1.0, code: str = STAY) -> None:
        i = len(self.jobs)
        self.jobs.append(
            Job(
                command=[sys.executable, "-c", code, str(self.path / f"end-{i}")],
                log=self.path / f"{i}.log",
                stages=tuple(self.stage(name, devices) for name in (*stages, f"last-{i}")),
            )
        )

    def stage(self, name: str, devices: float) -> Stage:
        done = self.path / f"{name}.done"
        return Stage(directory=self.path / name, devices=devices, is_complete=done.exists)

    def let_end(self, i: int) -> None:
        (self.path / f"end-{i}").touch()

    def run(self, *, ends: dict[int, int] | None = None, **limits: float) -> list[str]:
        """Run all jobs. Each is let end once the job `ends[i]` has started, or at once."""
        for i in range(len(self.jobs)):
            if i not in (ends or {}).values():
                self.let_end(i)

        def started(i: int) -> None:
            self.events.append(f"+{i}")
            if ends and i in ends:
                self.let_end(ends[i])

        def ended(i: int, code: int) -> None:
            self.events.append(f"-{i}")
            self.codes[i] = code

        Scheduler(started=started, ended=ended, **limits).run(self.jobs)
        return self.events


@pytest.fixture
def runs(tmp_path: Path) -> Runs:
    return Runs(tmp_path)


def test_runs_go_at_the_same_time_where_the_devices_allow(runs: Runs) -> None:
    """Check that the first run ends only after the second has started; a deadlock otherwise."""
    runs.add(devices=8)
    runs.add(devices=8)
    events = runs.run(devices=16, ends={1: 0})
    assert events[:2] == ["+0", "+1"]


def test_a_run_waits_for_devices(runs: Runs) -> None:
    runs.add(devices=8)
    runs.add(devices=9)
    runs.add(devices=8)
    events = runs.run(devices=16, ends={2: 0})
    assert events[:2] == ["+0", "+2"], "a smaller run goes first"
    assert events.index("+1") > events.index("-2") or events.index("+1") > events.index("-0")


def test_a_run_that_needs_more_than_there_is_runs_alone(runs: Runs) -> None:
    runs.add(devices=32)
    runs.add(devices=1)
    assert runs.run(devices=16) == ["+0", "-0", "+1", "-1"]


def test_at_most_a_number_of_runs_at_a_time(runs: Runs) -> None:
    for _ in range(3):
        runs.add()
    assert runs.run(most=1) == ["+0", "-0", "+1", "-1", "+2", "-2"]


def test_an_earlier_stage_is_trained_by_one_run(runs: Runs) -> None:
    for _ in range(2):
        runs.add("base")
    runs.add("other")
    events = runs.run(ends={2: 0})
    assert events[:2] == ["+0", "+2"]
    assert events.index("+1") > events.index("-0")


def test_a_complete_earlier_stage_holds_nobody_up(runs: Runs) -> None:
    (runs.path / "base.done").touch()
    runs.add("base", devices=8)
    runs.add("base", devices=8)
    assert runs.run(ends={1: 0})[:2] == ["+0", "+1"]


def test_devices_are_those_of_the_largest_stage_that_is_left(runs: Runs) -> None:
    large = Stage(directory=runs.path / "base", devices=64, is_complete=(runs.path / "base.done").exists)
    job = Job(command=[], log=runs.path / "log", stages=(large, runs.stage("last", 8)))
    assert job.devices == 64
    (runs.path / "base.done").touch()
    assert job.devices == 8


def test_exit_codes_and_logs(runs: Runs) -> None:
    runs.add(code="print('said'); raise SystemExit(3)")
    runs.add(code="import os; os.kill(os.getpid(), 9)")
    runs.run()
    assert runs.codes == {0: 3, 1: 137}
    assert (runs.path / "0.log").read_text() == "said\n"


def test_a_signal_reaches_the_running_and_starts_nothing_more(runs: Runs) -> None:
    for _ in range(3):
        runs.add()
    scheduler = Scheduler(most=2, ended=lambda i, code: runs.codes.update({i: code}))
    scheduler.started = lambda i: signal.raise_signal(signal.SIGTERM) if i == 1 else None
    before = signal.getsignal(signal.SIGTERM)
    scheduler.run(runs.jobs)
    assert scheduler.stopped_by == "SIGTERM"
    assert runs.codes == {0: 128 + 15, 1: 128 + 15}
    assert signal.getsignal(signal.SIGTERM) == before


def test_the_command_of_a_run_is_this_program() -> None:
    assert child_command("run", "--attempts", "2", "x.yaml")[-4:] == ["run", "--attempts", "2", "x.yaml"]
