"""Handling of Ctrl-C and SIGTERM."""

from __future__ import annotations

import signal
import subprocess
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Self

from orchestrator.errors import Interrupted


class StopRequest:
    """Request to stop the run, set by a signal.

    Inside `graceful`, the first signal stops the run after the step, with a checkpoint. A second signal, or one outside
    of `graceful`, raises Interrupted at once.
    """

    SIGNALS = (signal.SIGINT, signal.SIGTERM)

    def __init__(self) -> None:
        self.signal = ""  # name of the last signal
        self._note: Callable[[str], None] | None = None  # set inside `graceful`

    def requested(self) -> bool:
        return bool(self.signal)

    def __enter__(self) -> Self:
        self._before = {s: signal.signal(s, self._on_signal) for s in self.SIGNALS}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    @contextmanager
    def graceful(self, note: Callable[[str], None]) -> Iterator[None]:
        """Stop at the end of a step while this context is active. `note` is called with a line for the user."""
        self._note = note
        try:
            yield
        finally:
            self._note = None

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        first, self.signal = not self.signal, signal.Signals(number).name
        if first and self._note is not None:
            self._note("stopping after this step, with a checkpoint; interrupt again to stop at once")
            return
        raise Interrupted(self.signal)


class ForwardedSignals:
    """Ctrl-C and SIGTERM, forwarded to child processes.

    The children have process groups of their own, so that each gets every signal once.
    """

    def __init__(self, children: Callable[[], Iterable[subprocess.Popen[bytes]]]) -> None:
        """Forward to the `children` that run when a signal comes."""
        self._children = children
        self._number: int | None = None  # of the last signal

    @property
    def received(self) -> str | None:
        """Name of the last signal that this process has received; None: none."""
        return None if self._number is None else signal.Signals(self._number).name

    def __enter__(self) -> Self:
        self._before = {s: signal.signal(s, self._on_signal) for s in StopRequest.SIGNALS}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def catch_up(self, child: subprocess.Popen[bytes]) -> None:
        """Forward a signal that came just before `child` was started."""
        if self._number is not None:
            child.send_signal(self._number)

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        self._number = number
        for child in self._children():
            child.send_signal(number)  # nothing, if it has ended


def interruption(error: BaseException | None) -> Interrupted | None:
    """Return the Interrupted that caused an error; None if a signal did not cause it.

    If a handler raises inside compiled code of Ray, Ray raises an error of its own.
    """
    while error is not None and not isinstance(error, Interrupted):
        error = error.__cause__ or error.__context__
    return error
