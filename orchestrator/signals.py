"""Handling of Ctrl-C and SIGTERM, and of the request to end a run that they stand for.

A signal only creates the file `stop` in the directory of the run that is under way (`orchestrator.rundir.stop`), and
the driver looks for the file. Where no run has begun, or one has nothing to save, a signal also ends the process at
once.
"""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from types import FrameType
from typing import Literal, Protocol, Self

from orchestrator.errors import Interrupted

Cause = Literal["user", "preempted"]
"""Who asks for the end of a run: a person, or a scheduler that needs the machines."""

SIGNALS = (signal.SIGINT, signal.SIGTERM)


@dataclass(frozen=True, kw_only=True, slots=True)
class Stop:
    """Request to end a run.

    Example: `Stop(by="alice on node-3", cause="user", signal="", time=1.7e9)`.
    """

    by: str  # who asked: a user and a machine, or the name of a signal
    cause: Cause
    signal: str  # name of the signal that asked; empty: a command did
    time: float  # Unix seconds

    @property
    def exit_code(self) -> int:
        return 130 if self.signal == "SIGINT" else 143

    def error(self, resume: str = "") -> Interrupted:
        """Return the error that ends the run. `resume`: the command to continue it."""
        return Interrupted(self.signal, by="" if self.signal else self.by, cause=self.cause, resume=resume)


class Requests(Protocol):
    """Place of the requests to end one run: its directory."""

    def request(self, *, by: str, cause: Cause, signal: str) -> Stop:
        """Ask for the end of the run, unless somebody has asked before. Return the first request."""
        ...

    def read(self) -> Stop | None: ...


def at_keyboard() -> bool:
    """Return whether a person may be typing to this process: its standard input is a terminal."""
    try:
        return os.isatty(0)
    except OSError:
        return False


class Halted(Exception):
    """A stop was asked for while the driver waited for results that the run can do without."""


class StopRequest:
    """Request to stop the run: by a signal to this process, or by the file in the run's directory.

    Inside `graceful`, the run ends after the update it is in. Outside, the first signal raises Interrupted at once, and
    so does `poll`. Further signals change nothing, except for a second Ctrl-C of a person at a keyboard, which raises
    Interrupted wherever the driver is.
    """

    def __init__(self, by_person: Callable[[], bool] = at_keyboard) -> None:
        """Catch no signal yet. `by_person`: whether a person may be typing to this process."""
        self._by_person = by_person
        self._asked: Stop | None = None  # the first request
        self._run: Requests | None = None  # set inside `watching`
        self._note: Callable[[str], None] | None = None  # set inside `graceful`, until the user is told
        self._is_graceful = self._is_waiting = False

    def __enter__(self) -> Self:
        self._before = {s: signal.signal(s, self._on_signal) for s in SIGNALS}
        return self

    def __exit__(self, *_: object) -> None:
        """Restore the handlers. A process that was asked to stop is about to end: it ignores further SIGTERMs."""
        for number, handler in self._before.items():
            is_ending = self._asked is not None and number == signal.SIGTERM
            signal.signal(number, signal.SIG_IGN if is_ending else handler)

    @property
    def asked(self) -> Stop | None:
        """The first request that `requested` or a signal has brought; None if there was none."""
        return self._asked

    def requested(self) -> bool:
        """Return whether somebody has asked for the end of the run. Cheap: the run's directory is listed."""
        if self._asked is None and self._run is not None:
            self._asked = self._run.read()
        note = self._note
        if self._asked is not None and note is not None:
            typed = self._asked.signal == "SIGINT" and self._by_person()
            again = "; press Ctrl-C again to stop at once" if typed else ""
            self._note = None
            note(f"{self.error().problems[0].what}: stopping after this update, with a checkpoint{again}")
        return self._asked is not None

    def error(self, resume: str = "") -> Interrupted:
        """Return the error that ends the run as requested."""
        assert self._asked is not None
        return self._asked.error(resume)

    def poll(self) -> None:
        """Look for a request while the driver waits.

        Raises:
            Halted: there is one, and the driver is inside `interruptible`.
            Interrupted: there is one, and the driver is outside of `graceful`.
        """
        if not self.requested():
            return
        if self._is_waiting:
            raise Halted
        if not self._is_graceful:
            raise self.error()

    # -------------------------------------------------------------------------------------------- where the run is

    @contextmanager
    def watching(self, run: Requests) -> Iterator[None]:
        """Look for requests to end `run` while this context is active; a signal makes one."""
        self._run, self._is_graceful = run, False
        try:
            yield
        finally:
            self._run, self._is_graceful = None, False

    @contextmanager
    def graceful(self, note: Callable[[str], None]) -> Iterator[None]:
        """Let the run end at an update while this context is active. `note` is called with a line for the user."""
        self._note, self._is_graceful = note, True
        try:
            yield
        finally:
            self._note, self._is_graceful = None, False

    @contextmanager
    def interruptible(self) -> Iterator[None]:
        """Let `poll` raise Halted while this context is active: what the driver waits for need not be finished."""
        self._is_waiting = True
        try:
            yield
        finally:
            self._is_waiting = False

    def finish(self) -> None:
        """Let no signal disturb the end of the run: exit.json is about to be written."""
        self._is_graceful = True

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        # Nothing is printed here: the signal may have come in the middle of a line.
        name, is_first = signal.Signals(number).name, self._asked is None
        if is_first:
            cause: Cause = "preempted" if name == "SIGTERM" else "user"
            self._asked = Stop(by=name, cause=cause, signal=name, time=time.time())
            if self._run is not None:
                with suppress(OSError):  # on a full disk the request is kept in memory alone
                    self._asked = self._run.request(by=name, cause=cause, signal=name)
        is_typed_again = not is_first and number == signal.SIGINT and self._by_person()
        if is_typed_again or (is_first and not self._is_graceful):
            raise Interrupted(name)


@contextmanager
def shielded() -> Iterator[None]:
    """Start processes that SIGTERM does not end: it is for the driver, which ends them when it has saved.

    Whoever stops a run may send the signal to all of its processes: a scheduler, a service manager, Ray. What starts
    in this context blocks SIGTERM, and so do its children. A SIGTERM to this process waits for the end of the context.
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


class ForwardedSignals:
    """Ctrl-C and SIGTERM, forwarded to child processes: the first one, and a second Ctrl-C at a keyboard.

    The children have process groups of their own. A child may get the same signal from somebody else as well: it does
    not mind.
    """

    def __init__(
        self,
        children: Callable[[], Iterable[subprocess.Popen[bytes]]],
        by_person: Callable[[], bool] = at_keyboard,
    ) -> None:
        """Forward to the `children` that run when a signal comes. `by_person`: see `StopRequest`."""
        self._children, self._by_person = children, by_person
        self._number: int | None = None  # of the first signal

    @property
    def received(self) -> str | None:
        """Name of the first signal that this process has received; None: none."""
        return None if self._number is None else signal.Signals(self._number).name

    def __enter__(self) -> Self:
        self._before = {s: signal.signal(s, self._on_signal) for s in SIGNALS}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def catch_up(self, child: subprocess.Popen[bytes]) -> None:
        """Forward a signal that came just before `child` was started."""
        if self._number is not None:
            child.send_signal(self._number)

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        is_first, self._number = self._number is None, self._number or number
        if is_first or (number == signal.SIGINT and self._by_person()):
            for child in self._children():
                child.send_signal(number)  # nothing, if it has ended


def interruption(error: BaseException | None) -> Interrupted | None:
    """Return the Interrupted that caused an error; None if a signal did not cause it.

    If a handler raises inside compiled code of Ray, Ray raises an error of its own.
    """
    while error is not None and not isinstance(error, Interrupted):
        error = error.__cause__ or error.__context__
    return error
