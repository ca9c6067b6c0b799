"""Progress within a step: speed and remaining time from the arrivals, and progress.json."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pytest

from orchestrator.monitor import Monitor, Outcome, RunInfo, Sink
from orchestrator.monitor.phase import Phase
from orchestrator.monitor.progress_file import ProgressFile


class Clock:
    """Fake clock that a test advances."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


class PhaseSink(Sink):
    """Sink that records the phases."""

    def __init__(self) -> None:
        self.phases: list[Phase] = []

    def advance(self, phase: Phase) -> None:
        self.phases.append(phase)


class Monitored:
    """Monitor with a fake clock, to which a test reports arrivals."""

    def __init__(self) -> None:
        self.clock, self.sink = Clock(), PhaseSink()
        self.monitor = Monitor([self.sink], self.clock)

    def arrive(self, after_s: float, role: str, done: int, *, step: int = 1, total: int = 80, recalled: int = 0) -> str:
        """Report an arrival, and return the phase in words."""
        self.clock.now += after_s
        self.monitor.advance(role, step=step, done=done, total=total, unit="prompts", recalled=recalled)
        return "  ".join(self.sink.phases[-1].parts(self.clock.now))


@pytest.fixture
def monitored() -> Monitored:
    return Monitored()


def test_speed_and_remaining_time_by_hand(monitored: Monitored) -> None:
    """Count from the start of the phase: 20 prompts in 10 s, then 40 in 40 s, of 80."""
    monitored.monitor.phase("rollout", "generating")
    assert monitored.arrive(10, "rollout", 20) == "20 of 80 prompts  2/s  0:30 left"
    assert monitored.arrive(30, "rollout", 40) == "40 of 80 prompts  1/s  0:40 left"
    assert monitored.arrive(30, "rollout", 80) == "80 of 80 prompts  1.1/s"


def test_a_slow_phase_shows_seconds_per_unit(monitored: Monitored) -> None:
    monitored.monitor.phase("policy", "learning")
    monitored.clock.now += 5
    monitored.monitor.advance("policy", step=1, done=2, total=4, unit="updates")
    assert monitored.sink.phases[-1].parts(monitored.clock.now) == ["2 of 4 updates", "2.5 s/update", "5.0 s left"]


def test_between_arrivals_the_remaining_time_falls_by_one_interval_at_most(monitored: Monitored) -> None:
    monitored.monitor.phase("rollout", "generating")
    monitored.arrive(10, "rollout", 20)
    phase, now = monitored.sink.phases[-1], monitored.clock.now
    assert [phase.left_s(now + later) for later in (0, 4, 10, 1000)] == [30, 26, 20, 20]


def test_the_estimate_ends_when_it_is_used_up(monitored: Monitored) -> None:
    monitored.monitor.phase("rollout", "generating")
    monitored.arrive(10, "rollout", 40)
    phase = monitored.sink.phases[-1]
    assert phase.left_s(monitored.clock.now + 1000) is None


def test_recalled_work_takes_no_time(monitored: Monitored) -> None:
    monitored.monitor.phase("rollout", "generating")
    assert monitored.arrive(1, "rollout", 20, recalled=20) == "20 of 80 prompts"
    assert monitored.arrive(1, "rollout", 40, recalled=40) == "40 of 80 prompts"
    assert monitored.arrive(10, "rollout", 60, recalled=40) == "60 of 80 prompts  2/s  0:10 left"


def test_a_phase_without_a_start_begins_where_that_of_the_step_before_ended(monitored: Monitored) -> None:
    """Engines that work ahead are not told to start."""
    monitored.monitor.phase("rollout", "generating")
    monitored.arrive(10, "rollout", 80)
    assert monitored.arrive(20, "rollout", 40, step=2) == "40 of 80 prompts  2/s  0:20 left"


def test_a_phase_that_is_reported_at_0_begins_then(monitored: Monitored) -> None:
    monitored.arrive(0, "reward", 0)
    monitored.arrive(1, "reward", 80)
    monitored.arrive(1000, "reward", 0, step=2)
    assert monitored.arrive(10, "reward", 20, step=2) == "20 of 80 prompts  2/s  0:30 left"


def test_a_step_that_is_taken_again_begins_again(monitored: Monitored) -> None:
    monitored.arrive(0, "reward", 0)
    monitored.arrive(10, "reward", 80)
    monitored.arrive(1000, "reward", 0)
    assert monitored.arrive(10, "reward", 40) == "40 of 80 prompts  4/s  0:10 left"


def test_more_than_planned_raises_the_total(monitored: Monitored) -> None:
    """Dynamic sampling takes further prompts."""
    assert monitored.arrive(0, "rollout", 100).startswith("100 of 100 prompts")


# ------------------------------------------------------------------------------------------------ progress.json

RUN = RunInfo(
    name="arith",
    kind="iter_dpo",
    model="m",
    directory=Path("runs/arith"),
    num_steps=3,
    roles=("rollout", "reward", "policy"),
    step_word="round",
)


class Written:
    """Monitor that writes progress.json when it is read."""

    def __init__(self, path: Path) -> None:
        self.clock, self.path = Clock(), path / "progress.json"
        self.file = ProgressFile(self.path, self.clock, write_every_s=None)
        self.monitor = Monitor([self.file], self.clock)
        self.monitor.start(RUN)

    def read(self) -> dict[str, Any]:
        self.file.write()
        body: dict[str, Any] = json.loads(self.path.read_text())
        assert isinstance(body.pop("time"), float)
        return body


def test_progress_json(tmp_path: Path) -> None:
    written = Written(tmp_path)
    written.monitor.phase("rollout", "generating")
    written.clock.now += 128
    written.monitor.advance("rollout", step=1, done=1536, total=8192, unit="prompts")
    assert written.read() == {
        "schema": 1,
        "step": 1,
        "step_word": "round",
        "num_steps": 3,
        "phases": {
            "rollout": {
                "text": "1,536 of 8,192 prompts  12/s  9:15 left",
                "step": 1,
                "done": 1536,
                "total": 8192,
                "unit": "prompts",
                "per_s": 12.0,
                "left_s": 554.7,
            }
        },
    }
    written.clock.now += 600
    written.monitor.advance("rollout", step=1, done=8192, total=8192, unit="prompts")
    written.monitor.step(1, {"loss": 0.5})
    written.clock.now += 1
    written.monitor.phase("policy", "saving a checkpoint")
    read = written.read()
    assert (read["step"], read["phases"]) == (2, {"policy": {"text": "saving a checkpoint"}})
    written.monitor.close(Outcome(ok=True, message="done"))
    assert list(tmp_path.iterdir()) == []


def test_progress_json_is_written_by_itself(tmp_path: Path) -> None:
    path = tmp_path / "progress.json"
    monitor = Monitor([ProgressFile(path, write_every_s=0.01)])
    monitor.start(RUN)
    monitor.phase("rollout", "generating")
    deadline = time.monotonic() + 30
    while not path.exists() and time.monotonic() < deadline:
        time.sleep(0.01)
    assert json.loads(path.read_text())["phases"] == {"rollout": {"text": "generating"}}
    monitor.close(Outcome(ok=True, message="done"))
    assert not path.exists()


def test_a_progress_file_that_cannot_be_written_stops_nothing(tmp_path: Path) -> None:
    written = Written(tmp_path / "missing")
    written.monitor.phase("rollout", "generating")
    written.file.write()
    written.monitor.close(Outcome(ok=True, message="done"))
