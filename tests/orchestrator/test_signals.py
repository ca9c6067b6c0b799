"""Ctrl-C and SIGTERM. The tests call the installed handlers."""

from __future__ import annotations

import signal

import pytest

from orchestrator.errors import Interrupted
from orchestrator.signals import StopRequest, interruption

NOTE = "stopping after this step, with a checkpoint; interrupt again to stop at once"


def arrive(number: signal.Signals) -> None:
    """Call the handler, as Python does when the signal arrives."""
    handler = signal.getsignal(number)
    assert callable(handler)
    handler(number, None)


@pytest.mark.parametrize(
    ("number", "exit_code", "cause"), [(signal.SIGINT, 130, "user"), (signal.SIGTERM, 143, "preempted")]
)
def test_outside_the_loop_a_signal_ends_the_run_at_once(number: signal.Signals, exit_code: int, cause: str) -> None:
    with StopRequest() as stop:
        with pytest.raises(Interrupted) as caught:
            arrive(number)
        assert stop.requested()
    assert (caught.value.exit_code, caught.value.cause) == (exit_code, cause)


def test_in_the_loop_the_first_signal_requests_a_stop_and_the_second_ends_the_run() -> None:
    notes: list[str] = []
    with StopRequest() as stop, stop.graceful(notes.append):
        assert not stop.requested()
        arrive(signal.SIGINT)
        assert stop.requested()
        assert notes == [NOTE]
        with pytest.raises(Interrupted) as caught:
            arrive(signal.SIGTERM)
    assert notes == [NOTE]
    assert (stop.signal, caught.value.exit_code) == ("SIGTERM", 143)


def test_after_the_loop_a_signal_ends_the_run_at_once_again() -> None:
    notes: list[str] = []
    with StopRequest() as stop:
        with stop.graceful(notes.append):
            pass
        with pytest.raises(Interrupted):
            arrive(signal.SIGINT)
    assert notes == []


def test_after_an_error_in_the_loop_a_signal_ends_the_run_at_once() -> None:
    notes: list[str] = []
    with StopRequest() as stop:
        with pytest.raises(ZeroDivisionError), stop.graceful(notes.append):
            raise ZeroDivisionError
        with pytest.raises(Interrupted):
            arrive(signal.SIGINT)
    assert notes == []


def test_the_previous_handlers_are_restored() -> None:
    before = [signal.getsignal(number) for number in StopRequest.SIGNALS]
    with StopRequest():
        assert [signal.getsignal(number) for number in StopRequest.SIGNALS] != before
    assert [signal.getsignal(number) for number in StopRequest.SIGNALS] == before


def test_an_error_of_ray_that_a_signal_caused_is_the_signal() -> None:
    error = SystemError("returned a result with an exception set")
    assert interruption(error) is None
    error.__cause__ = stopped = Interrupted("SIGTERM")
    assert interruption(error) is stopped
