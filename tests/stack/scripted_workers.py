"""Workers that sleep, die and raise when they are told to: what actors of `test_restarts.py` run."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path
from typing import Any

IMPORTS = {"PYTHONPATH": os.pathsep.join([str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")])}
"""In the environment of an actor, so that it finds this file."""


class VersionMismatch(Exception):
    """Known by its name, as the engines' own."""


class Teller:
    """A worker whose answers depend on the call and on what it was last told."""

    def __init__(self, number: int, directory: str, **meeting: Any) -> None:
        self._number, self._directory, self._told, self._meeting = number, Path(directory), 0, meeting
        self._totals = 0

    def learn(self, what: int) -> None:
        self._told = what

    def pid(self) -> int:
        return os.getpid()

    def meeting(self) -> Any:
        return self._meeting

    def tell(self, question: int, sleeps_once: str = "") -> tuple[int, int, int]:
        """(number, question, what it was told). The first call ever that bears a name `sleeps_once` never ends."""
        self._sleep(sleeps_once)
        return self._number, question, self._told

    def total(self, answers: list[tuple[int, int, int]], sleeps_once: str = "") -> int:
        self._totals += 1
        self._sleep(sleeps_once)
        return sum(sum(answer) for answer in answers)

    def total_together(self, answers: list[tuple[int, int, int]], name: str) -> int:
        """Add up the answers once both members of the gang are in this call, as ranks of a collective are."""
        (self._directory / f"{name}-{self._number}").touch()
        while len(list(self._directory.glob(f"{name}-*"))) < 2:
            time.sleep(0.01)
        return sum(sum(answer) for answer in answers)

    def num_totals(self) -> int:
        """How often this process was asked for one."""
        return self._totals

    def tell_if_told(self, what: int) -> int:
        if self._told != what:
            raise VersionMismatch(f"told {self._told}, asked for {what}")
        return self._told

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


class Sluggard:
    """A worker whose start takes `seconds`, or ends its process; `directory`/`name` says when it began and ended."""

    def __init__(self, name: str, seconds: float, directory: str, dies: bool = False) -> None:
        began = time.time()
        time.sleep(seconds)
        if dies:
            os.kill(os.getpid(), signal.SIGKILL)
        (Path(directory) / name).write_text(f"{began} {time.time()}")
