"""Workers that work, sleep, die and raise on request: actors of `test_restarts.py`, `test_progress.py` and others."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path
from typing import Any

from workers import progress

IMPORTS = {"PYTHONPATH": os.pathsep.join([str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")])}
"""Environment variables with which an actor can import this file."""


class VersionMismatch(Exception):
    """Error of a worker with the wrong version. The cluster recognises it by its class name."""


class ScriptedWorker:
    """Worker whose answers depend on the call and on the value that was set last."""

    def __init__(self, number: int, directory: str, **rendezvous: Any) -> None:
        self._number, self._directory, self._value, self._rendezvous = number, Path(directory), 0, rendezvous
        self._totals = 0

    def set_value(self, value: int) -> None:
        self._value = value

    def pid(self) -> int:
        return os.getpid()

    def rendezvous(self) -> Any:
        return self._rendezvous

    def answer(self, question: int, sleeps_once: str = "") -> tuple[int, int, int]:
        """Return (number, question, value that was set last).

        The first call with a given `sleeps_once`, in any process, sleeps for ten minutes.
        """
        self._sleep(sleeps_once)
        return self._number, question, self._value

    def total(self, answers: list[tuple[int, int, int]], sleeps_once: str = "") -> int:
        self._totals += 1
        self._sleep(sleeps_once)
        return sum(sum(answer) for answer in answers)

    def work(self, seconds: float, given: Any = None) -> int:
        """Work for some seconds, and report a piece of work four times a second."""
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            time.sleep(0.25)
            progress.report()
        return self._number

    def total_together(self, answers: list[tuple[int, int, int]], name: str) -> int:
        """Add up the answers once both members of the gang are in this call, like ranks in a collective."""
        (self._directory / f"{name}-{self._number}").touch()
        while len(list(self._directory.glob(f"{name}-*"))) < 2:
            time.sleep(0.01)
        return sum(sum(answer) for answer in answers)

    def num_totals(self) -> int:
        """Return the number of `total` calls that this process has received."""
        return self._totals

    def answer_if_current(self, value: int) -> int:
        if self._value != value:
            raise VersionMismatch(f"holds {self._value}, expected {value}")
        return self._value

    def raise_something(self) -> None:
        raise KeyError("something")

    def die(self) -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    def _sleep(self, name: str) -> None:
        if not name:
            return
        try:
            with (self._directory / name).open("x") as file:
                file.write(str(os.getpid()))
        except FileExistsError:
            return
        time.sleep(600)


class SlowStarter:
    """Worker that takes `seconds` to start, then dies or writes its begin and end times to `directory`/`name`."""

    def __init__(self, name: str, seconds: float, directory: str, dies: bool = False) -> None:
        began = time.time()
        time.sleep(seconds)
        if dies:
            os.kill(os.getpid(), signal.SIGKILL)
        (Path(directory) / name).write_text(f"{began} {time.time()}")
