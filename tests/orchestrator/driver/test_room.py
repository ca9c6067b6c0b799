"""Waits of an attempt: what is shown, when its devices count as reserved, and how a stop ends the wait."""

from __future__ import annotations

from functools import partial

import pytest

from orchestrator.driver.room import wait_for_room, wait_for_stage
from orchestrator.errors import Interrupted
from orchestrator.monitor.base import Sink
from orchestrator.monitor.monitor import Monitor
from orchestrator.signals import Stop, StopRequest


class Phases(Sink):
    def __init__(self) -> None:
        self.events: list[object] = []

    def phase(self, role: str, text: str) -> None:
        self.events.append((role, text))


class Asked:
    """Requests of a run: one lies there from the third look on."""

    def __init__(self) -> None:
        self.looks = 0

    def request(self, **_: object) -> Stop:
        raise AssertionError

    def read(self) -> Stop | None:
        self.looks += 1
        return Stop(by="alice", cause="user", signal="", time=0.0) if self.looks == 3 else None


def test_devices_count_as_reserved_when_the_wait_is_over() -> None:
    phases = Phases()
    placed = partial(phases.events.append, "placed")
    on_wait = wait_for_room(["policy", "rollout"], Monitor([phases]), StopRequest(), placed)
    for text in ("waits for 8 GPUs: 3 free", "waits for 8 GPUs: 3 free", "waits for 8 GPUs: 4 free", ""):
        on_wait(text)
    assert phases.events == [
        ("driver", "waits for 8 GPUs: 3 free"),
        ("driver", "waits for 8 GPUs: 4 free"),
        ("driver", ""),
        "placed",
        ("policy", "loading"),
        ("rollout", "loading"),
    ]


def test_a_stop_ends_the_wait_for_room() -> None:
    stop, phases = StopRequest(), Phases()
    on_wait = wait_for_room(["policy"], Monitor([phases]), stop, pytest.fail)
    with stop.watching(Asked()):
        on_wait("waits for 8 GPUs: 3 free")
        on_wait("waits for 8 GPUs: 3 free")
        with pytest.raises(Interrupted, match="alice"):
            on_wait("waits for 8 GPUs: 3 free")


def test_only_a_stage_before_the_last_is_waited_for(capsys: pytest.CaptureFixture[str]) -> None:
    assert wait_for_stage("policy", (2, 2), StopRequest()) is None
    on_wait = wait_for_stage("base", (1, 2), StopRequest())
    assert on_wait is not None
    on_wait("process 1 on node-3")
    on_wait("process 1 on node-3")
    on_wait("process 7 on node-4")
    assert capsys.readouterr().out.splitlines() == [
        "stage base: another job (process 1 on node-3) runs it; waiting",
        "stage base: another job (process 7 on node-4) runs it; waiting",
    ]
