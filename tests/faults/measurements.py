"""Records of what was measured, appended as JSON lines, so that hours of trials can be done in slices."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from benchmarks.machine import description

PIECES = Path(__file__).parent / "measured" / "pieces.jsonl"
KILLS = Path(__file__).parent / "measured" / "kills.jsonl"


@dataclass(frozen=True, kw_only=True)
class Piece:
    """Trials of one figure: the failures and their reasons, the steps redone, and the values measured.

    Example: `Piece(figure="T4", command="report.py", trials=3, redone=(0, 1, 1), seconds=6.1, machine="…", date="…")`.
    """

    figure: str
    command: str
    trials: int = 0
    failures: tuple[str, ...] = ()
    redone: tuple[int, ...] = ()
    values: tuple[float, ...] = ()  # measured in each trial, in seconds
    seconds: float = 0.0  # wall time of all trials
    machine: str = field(default_factory=lambda: machine())
    date: str = field(default_factory=lambda: today())

    def tried(self, what: str, trial: Callable[[], int | bool]) -> Piece:
        """Run one more trial and return this piece with its result added.

        A trial fails by an AssertionError or OSError, or by returning False. An integer is the number of steps redone.
        """
        try:
            found = trial()
            assert found is not False, "the damage was not detected"
            redone = self.redone if found is True else (*self.redone, found)
            return replace(self, trials=self.trials + 1, redone=redone)
        except (AssertionError, OSError) as error:
            why = str(error).splitlines()[0][:120] if str(error) else repr(error)
            return replace(self, trials=self.trials + 1, failures=(*self.failures, f"{what}: {why}"))


def add(path: Path, record: Any) -> None:
    path.parent.mkdir(exist_ok=True)
    with path.open("a") as file:
        file.write(json.dumps(asdict(record) if isinstance(record, Piece) else record) + "\n")


def read(path: Path) -> Iterator[dict[str, Any]]:
    if path.exists():
        yield from map(json.loads, path.read_text().splitlines())


def pieces() -> list[Piece]:
    tuples = ("failures", "redone", "values")
    return [Piece(**{**piece, **{name: tuple(piece[name]) for name in tuples}}) for piece in read(PIECES)]


def machine() -> str:
    described = description()
    return f"{described['cpu']}, {described['cpu_cores']} cores"


def today() -> str:
    return datetime.now(UTC).date().isoformat()


def command() -> str:
    """Return the command line of this process, relative to the root of the repository."""
    script = os.path.relpath(sys.argv[0], Path(__file__).parents[2])
    return " ".join(["python", script, *sys.argv[1:]])


def show_progress(text: str) -> None:
    """Show a line of progress on a terminal, in place of the previous one."""
    if sys.stderr.isatty():
        print(f"\r{text:<100}", end="", file=sys.stderr, flush=True)
