"""Ctrl-C, SIGTERM and the file `stop`. The tests call the installed handlers."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from orchestrator.errors import Interrupted
from orchestrator.rundir.stop import StopFile
from orchestrator.signals import SIGNALS, ForwardedSignals, Halted, StopRequest, interruption, shielded

STOPPING = "stopped by {}: stopping after this update, with a checkpoint"


@pytest.fixture(autouse=True)
def handlers() -> Iterator[None]:
    """Restore the handlers of the test session: a process that was asked to stop ignores SIGTERM from then on."""
    before = {number: signal.getsignal(number) for number in SIGNALS}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


def arrive(number: signal.Signals) -> None:
    """Call the handler, as Python does when the signal arrives."""
    handler = signal.getsignal(number)
    assert callable(handler)
    handler(number, None)


def nobody() -> bool:
    return False


def somebody() -> bool:
    return True


# ------------------------------------------------------------------------------------------------ signals


@pytest.mark.parametrize(
    ("number", "exit_code", "cause"), [(signal.SIGINT, 130, "user"), (signal.SIGTERM, 143, "preempted")]
)
def test_where_nothing_is_to_be_saved_a_signal_ends_the_run_at_once(
    number: signal.Signals, exit_code: int, cause: str
) -> None:
    with StopRequest() as stop:
        with pytest.raises(Interrupted) as caught:
            arrive(number)
        assert stop.requested()
    assert (caught.value.exit_code, caught.value.cause) == (exit_code, cause)


def test_twenty_signals_are_one(tmp_path: Path) -> None:
    notes: list[str] = []
    with StopRequest(nobody) as stop, stop.watching(StopFile(tmp_path)), stop.graceful(notes.append):
        assert not stop.requested()
        for _ in range(10):
            arrive(signal.SIGTERM)
            arrive(signal.SIGINT)
        assert stop.requested()
        assert notes == [STOPPING.format("SIGTERM")]
        stop.poll()
    assert (stop.error().exit_code, stop.error().cause) == (143, "preempted")


def test_a_signal_creates_the_file(tmp_path: Path) -> None:
    with StopRequest(nobody) as stop, stop.watching(StopFile(tmp_path)), stop.graceful([].append):
        arrive(signal.SIGTERM)
    found = StopFile(tmp_path).read()
    assert found is not None
    assert (found.by, found.signal, found.cause) == ("SIGTERM", "SIGTERM", "preempted")


def test_a_signal_counts_where_the_file_cannot_be_written(tmp_path: Path) -> None:
    with StopRequest(nobody) as stop, stop.watching(StopFile(tmp_path / "gone")), stop.graceful([].append):
        arrive(signal.SIGTERM)
        assert stop.requested()


def test_a_second_ctrl_c_of_a_person_ends_the_run_at_once() -> None:
    notes: list[str] = []
    with StopRequest(somebody) as stop, stop.graceful(notes.append):
        arrive(signal.SIGINT)
        assert stop.requested()
        arrive(signal.SIGTERM)  # of a scheduler: it is in no hurry
        with pytest.raises(Interrupted) as caught:
            arrive(signal.SIGINT)
    assert notes == [STOPPING.format("Ctrl-C") + "; press Ctrl-C again to stop at once"]
    assert caught.value.exit_code == 130


def test_a_signal_that_ends_the_run_at_once_does_so_once() -> None:
    with StopRequest(nobody):
        with pytest.raises(Interrupted):
            arrive(signal.SIGTERM)
        arrive(signal.SIGTERM)  # while the run is cleaned up


def test_no_signal_disturbs_the_end_of_a_run(tmp_path: Path) -> None:
    with StopRequest(nobody) as stop, stop.watching(StopFile(tmp_path)):
        stop.finish()
        arrive(signal.SIGTERM)
        assert stop.requested()


def test_after_an_error_in_the_loop_a_signal_ends_the_run_at_once() -> None:
    notes: list[str] = []
    with StopRequest() as stop:
        with pytest.raises(ZeroDivisionError), stop.graceful(notes.append):
            raise ZeroDivisionError
        with pytest.raises(Interrupted):
            arrive(signal.SIGINT)
    assert notes == []


def test_the_previous_handlers_are_restored() -> None:
    before = [signal.getsignal(number) for number in SIGNALS]
    with StopRequest():
        assert [signal.getsignal(number) for number in SIGNALS] != before
    assert [signal.getsignal(number) for number in SIGNALS] == before


def test_a_process_that_was_asked_to_stop_ignores_further_requests() -> None:
    with StopRequest() as stop, stop.graceful([].append):
        arrive(signal.SIGTERM)
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_IGN


def test_an_error_of_ray_that_a_signal_caused_is_the_signal() -> None:
    error = SystemError("returned a result with an exception set")
    assert interruption(error) is None
    error.__cause__ = stopped = Interrupted("SIGTERM")
    assert interruption(error) is stopped


# ------------------------------------------------------------------------------------------------ the file


def test_the_file_asks_as_a_signal_does(tmp_path: Path) -> None:
    notes: list[str] = []
    with StopRequest() as stop, stop.watching(StopFile(tmp_path)), stop.graceful(notes.append):
        assert not stop.requested()
        StopFile(tmp_path).request(by="alice on node-3")
        assert stop.requested()
        arrive(signal.SIGTERM)
    assert notes == [STOPPING.format("alice on node-3")]
    error = stop.error("rlhf resume runs/a")
    assert (error.exit_code, error.cause, error.by) == (143, "user", "alice on node-3")
    assert "resume with: rlhf resume runs/a" in str(error)


def test_a_wait_ends_for_the_file_unless_the_run_must_go_on(tmp_path: Path) -> None:
    with StopRequest() as stop, stop.watching(StopFile(tmp_path)):
        stop.poll()
        (tmp_path / "stop").touch()
        with pytest.raises(Interrupted, match="stopped by the file stop in the run directory"):
            stop.poll()  # while the workers load
        with stop.graceful([].append):
            stop.poll()  # during an update
            with stop.interruptible(), pytest.raises(Halted):
                stop.poll()  # while completions are sampled
            stop.poll()


def test_the_file_of_a_run_that_has_ended_is_not_looked_for(tmp_path: Path) -> None:
    with StopRequest() as stop:
        with stop.watching(StopFile(tmp_path)):
            pass
        (tmp_path / "stop").touch()
        assert not stop.requested()


# ------------------------------------------------------------------------------------------------ other processes


class Child:
    """Child process that records the signals it is sent."""

    def __init__(self) -> None:
        self.signals: list[int] = []

    def send_signal(self, number: int) -> None:
        self.signals.append(number)


def forwarded(by_person: Any) -> list[int]:
    child: Any = Child()
    with ForwardedSignals(lambda: [child], by_person) as forwarding:
        for number in (signal.SIGTERM, signal.SIGTERM, signal.SIGINT):
            arrive(number)
        assert forwarding.received == "SIGTERM"
        late: Any = Child()
        forwarding.catch_up(late)
        assert late.signals == [signal.SIGTERM]
    return list(child.signals)


def test_the_first_signal_is_forwarded_and_a_second_ctrl_c_of_a_person() -> None:
    assert forwarded(nobody) == [signal.SIGTERM]
    assert forwarded(somebody) == [signal.SIGTERM, signal.SIGINT]


def test_what_is_started_under_a_shield_does_not_end_by_sigterm() -> None:
    program = [sys.executable, "-c", "print('ready', flush=True); input()"]
    with shielded():
        child = subprocess.Popen(program, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    with child:
        assert child.stdout is not None
        assert child.stdout.readline() == b"ready\n"
        child.send_signal(signal.SIGTERM)
        child.communicate(b"\n")
    assert child.returncode == 0
    assert signal.SIGTERM not in signal.pthread_sigmask(signal.SIG_BLOCK, ())
