"""Ctrl-C and SIGTERM."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Self

from orchestrator.errors import Interrupted


class StopRequest:
    """During the loop the first signal ends the run after the step, with a checkpoint; a second one, or one at any
    other time, ends it at once."""

    SIGNALS = (signal.SIGINT, signal.SIGTERM)

    def __init__(self) -> None:
        self.signal = ""
        self._gentle: Callable[[str], None] | None = None

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
        self._gentle = note
        try:
            yield
        finally:
            self._gentle = None

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        first, self.signal = not self.signal, signal.Signals(number).name
        if first and self._gentle is not None:
            self._gentle("stopping after this step, with a checkpoint; once more to stop at once")
            return
        raise Interrupted(self.signal)


def interruption(error: BaseException | None) -> Interrupted | None:
    """What an error came of, when that was a signal: compiled code of Ray turns what a handler raises inside it into an
    error of its own."""
    while error is not None and not isinstance(error, Interrupted):
        error = error.__cause__ or error.__context__
    return error
