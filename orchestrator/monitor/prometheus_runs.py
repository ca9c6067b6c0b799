"""Figures of runs for Prometheus, read from run directories alone. A look reads only what is new since the last one.

    resolved.json     method, KL budget                ledger.jsonl      state, steps, attempts, waiting, devices
    metrics.jsonl     reward, KL, loss, alarms, …      incidents.jsonl   restarted workers
    exit.json, lock   whether and how it ended         progress.json     the planned number of steps

Reading never fails because of a directory's content: a line that is no JSON object is skipped and counted.
"""

from __future__ import annotations

import json
import math
import os
import re
import socket
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

from orchestrator.rundir.cost import Meter
from orchestrator.rundir.directory import COMPLETE, RunDirectory, in_rounds
from orchestrator.rundir.ledger import Fact, Record

DEPTH = 3  # levels below the given directory at which runs are looked for: a comparison has its runs in a directory
RECENT_STEPS = 10  # steps whose mean duration counts as that of a step
SILENT_S = 600.0  # without a sign of life for so long, a run whose lock cannot be judged from this machine is lost
ASIDE = re.compile(r".*\.old-\d+")
"""Name of a run that another one replaced."""

STATES = ("submitted", "queued", "starting", "running", "preempted", "paused", "stopped", "succeeded", "failed", "lost")
STATE_OF_CAUSE = {"alarm_pause": "paused", "user": "stopped", "preempted": "preempted"}
"""State of a run by the cause in exit.json. COMPLETE causes stand for succeeded, all others for failed."""


@dataclass(frozen=True, kw_only=True, slots=True)
class RunFigures:
    """Figures of one run at one moment. Times are Unix seconds; None: not yet.

    Example: `RunFigures(run="arith-grpo", method="grpo", state="running", step=12, metrics={"reward": 0.7}, …)`.
    """

    run: str  # path relative to the directory of all runs
    method: str  # algorithm.type; iter_dpo for iterative DPO
    state: str  # one of STATES
    cause: str = ""  # of exit.json; empty: there is none
    step: int = 0  # steps (iterative DPO: rounds) committed
    planned_steps: int | None = None
    last_step: float | None = None  # when the newest step was committed
    last_activity: float | None = None  # when a file of the run last changed
    step_s: float | None = None  # mean duration of the newest steps
    attempts: int = 0
    wait_s: float = 0.0  # the newest attempt waited, or waits, so long for its devices
    devices: float = 0.0  # reserved now
    device_seconds: float = 0.0  # reserved by all attempts: loading, work and evaluation
    restarts: Mapping[str, int] = field(default_factory=dict)  # by role: workers restarted in place
    alarms: Mapping[str, int] = field(default_factory=dict)  # by name: how often the alarm began
    ringing: frozenset[str] = frozenset()  # alarms that are active in the newest step
    max_kl: float | None = None  # budget of the KL alarm in nats; None: the alarm is off
    metrics: Mapping[str, float] = field(default_factory=dict)  # newest value of each metric of metrics.jsonl
    unreadable: int = 0  # lines that were skipped


class Tail:
    """Growing file of JSON lines, read from where the last look ended.

    A file that was replaced or cut is read from its beginning: the last line that was read is no longer in its place.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._offset = 0
        self._last = b""  # the line that ends at `_offset`
        self.unreadable = 0  # lines that are no JSON objects

    def rows(self, restart: Callable[[], None]) -> Iterator[dict[str, Any]]:
        """Yield the complete lines since the last look. `restart` is called first if they replace all earlier ones."""
        try:
            with self._path.open("rb") as file:
                file.seek(self._offset - len(self._last))
                if file.read(len(self._last)) != self._last:
                    self._restart(restart)
                    file.seek(0)
                yield from self._lines(file)
        except OSError:
            if self._offset:
                self._restart(restart)

    def _lines(self, file: IO[bytes]) -> Iterator[dict[str, Any]]:
        for line in file:
            if not line.endswith(b"\n"):
                return
            self._offset, self._last = self._offset + len(line), line
            row = _parse(line)
            if row is None:
                self.unreadable += 1
            else:
                yield row

    def _restart(self, restart: Callable[[], None]) -> None:
        self._offset, self._last, self.unreadable = 0, b"", 0
        restart()


class RunReader:
    """Figures of one run, kept up to date by `look`."""

    def __init__(self, directory: RunDirectory, name: str) -> None:
        self._directory, self._name = directory, name
        self._config = _object(directory.resolved)
        self._ledger, self._rows = Tail(directory.ledger), Tail(directory.metrics)
        self._incidents = Tail(directory.incidents)
        self._history, self._curves = _History(), _Curves()
        self._restarts: Counter[str] = Counter()
        self._planned: int | None = None

    def last_activity(self) -> float | None:
        """Return when a file of the run last changed; None if it has none of them. Reads no file."""
        files = (self._directory.ledger, self._directory.metrics, self._directory.progress, self._directory.exit)
        return max(filter(None, map(_changed, files)), default=None)

    def look(self, now: float) -> RunFigures:
        """Read what is new and return the figures. `now`: Unix seconds."""
        directory = self._directory
        exit, holder = directory.read_exit(), directory.holder()
        self._read()
        history, curves, active = self._history, self._curves, self.last_activity()
        cause = str(exit.get("cause", "error")) if exit is not None else ""
        state = self._state(cause, alive=self._is_alive(holder, active, now))
        ended = state not in ("queued", "starting", "running")
        return RunFigures(
            run=self._name,
            method=self.method,
            state=state,
            cause=cause,
            step=history.step,
            planned_steps=history.step if state == "succeeded" else self._planned_steps(),
            last_step=history.committed,
            last_activity=active,
            step_s=curves.step_s,
            attempts=history.attempts,
            wait_s=history.wait_s(now if state == "queued" else None),
            devices=0.0 if ended else history.devices,
            device_seconds=history.device_seconds(None if ended else now),
            restarts=dict(self._restarts),
            alarms=dict(curves.alarms),
            ringing=curves.ringing,
            max_kl=self._max_kl,
            metrics=curves.newest,
            unreadable=self._ledger.unreadable + self._rows.unreadable + self._incidents.unreadable,
        )

    def _read(self) -> None:
        for row in self._ledger.rows(self._history.clear):
            self._history.add(row)
        for row in self._rows.rows(self._curves.clear):
            self._curves.add(row)
        for incident in self._incidents.rows(self._restarts.clear):
            if incident.get("action") == "restarted":
                self._restarts[str(incident.get("role") or "driver")] += 1

    @property
    def method(self) -> str:
        kind = str(_section(self._config, "algorithm").get("type", "unknown"))
        return "iter_dpo" if in_rounds(self._config) else kind

    @property
    def _max_kl(self) -> float | None:
        budget = _section(_section(self._config, "alarms"), "kl_budget").get("max_kl")
        return float(budget) if isinstance(budget, int | float) else None

    def _planned_steps(self) -> int | None:
        """Return the planned number of steps: of the recipe, or what the driver has computed from its data."""
        newest = _object(self._directory.progress).get("num_steps")
        configured = _section(self._config, "algorithm").get("max_steps")
        self._planned = next((n for n in (newest, self._planned, configured) if isinstance(n, int)), None)
        return self._planned

    def _is_alive(self, holder: str | None, active: float | None, now: float) -> bool:
        """Return whether a driver runs.

        A lock that a driver on another machine took may not be seen from here: then signs of life decide.
        """
        if holder is not None:
            return True
        try:
            taker = (self._directory.path / "lock").read_text("utf-8", "replace").partition("\n")[0]
        except OSError:
            return False  # never taken
        taken_here = taker.endswith(f" on {socket.gethostname()}")
        return not taken_here and active is not None and now - active < SILENT_S

    def _state(self, cause: str, *, alive: bool) -> str:
        if cause:
            return "succeeded" if cause in COMPLETE else STATE_OF_CAUSE.get(cause, "failed")
        if alive:
            return self._history.phase
        return "lost" if self._history.attempts else "submitted"


class _History:
    """State of a run as its ledger tells it."""

    def __init__(self) -> None:
        self.clear()

    def clear(self) -> None:
        self._meter = Meter()
        self.attempts = 0
        self.step = 0
        self.committed: float | None = None
        self.phase = "starting"  # of the newest attempt: queued, starting or running
        self._asked = self._placed = 0.0  # times of the newest attempt; `_placed` 0: not yet

    def add(self, row: Mapping[str, Any]) -> None:
        record = _record(row)
        if record is None:
            return
        self._meter.add(record)
        match record.fact:
            case Fact.attempt:
                self.attempts += 1
                self.phase = "queued"
                self._asked, self._placed = _submitted(record), 0.0
            case Fact.placed:
                self.phase, self._placed = "starting", record.time
            case Fact.planned:
                self.phase = "running"
            case Fact.committed:
                self.committed = record.time
        if record.fact in (Fact.attempt, Fact.committed, Fact.finished):
            self.step = record.step

    def wait_s(self, now: float | None) -> float:
        """Return how long the newest attempt has waited for its devices. `now`: it still waits; None: it does not."""
        until = self._placed if now is None else now
        return max(0.0, until - self._asked) if until else 0.0

    @property
    def devices(self) -> float:
        return self._meter.attempts[-1].num_devices() if self._meter.attempts else 0.0

    def device_seconds(self, now: float | None) -> float:
        """Return the reserved device-seconds of all attempts. `now`: the newest one still holds its devices."""
        attempts = self._meter.attempts
        total = sum(spent.num_devices() * (spent.last - spent.placed) for spent in attempts)
        return total if now is None or not attempts else total + self.devices * max(0.0, now - attempts[-1].last)


class _Curves:
    """Newest values of a run's metrics, and its alarms."""

    def __init__(self) -> None:
        self.clear()

    def clear(self) -> None:
        self.newest: dict[str, float] = {}  # metrics of an earlier evaluation stay
        self.alarms: Counter[str] = Counter()
        self.ringing: frozenset[str] = frozenset()
        self._durations: deque[float] = deque(maxlen=RECENT_STEPS)

    def add(self, row: Mapping[str, Any]) -> None:
        ringing = frozenset(name.removeprefix("alarms/") for name in row if name.startswith("alarms/"))
        self.alarms.update(ringing - self.ringing)
        self.ringing = ringing
        self.newest.update({name: number for name, value in row.items() if (number := _number(value)) is not None})
        seconds = _number(row.get("timing/step", math.nan))
        if seconds is not None and math.isfinite(seconds):
            self._durations.append(seconds)

    @property
    def step_s(self) -> float | None:
        return sum(self._durations) / len(self._durations) if self._durations else None


class RunsReader:
    """Figures of all runs below some directories. New runs are found at every look."""

    def __init__(self, roots: Sequence[Path], *, keep_s: float = math.inf) -> None:
        """Set where to look. `keep_s`: a run that ended longer ago is left out."""
        self._roots, self._keep_s = list(dict.fromkeys(root.absolute() for root in roots)), keep_s
        self._readers: dict[Path, RunReader] = {}

    def look(self, now: float | None = None) -> list[RunFigures]:
        """Return the figures of every run, ordered by name. `now`: Unix seconds; None: the clock's."""
        now = time.time() if now is None else now
        found = {run: self._name(root, run) for root in self._roots for run in find_runs(root)}
        self._readers = {path: self._readers.get(path) or _reader(path, name) for path, name in found.items()}
        recent = [r for r in self._readers.values() if now - (r.last_activity() or now) <= self._keep_s]
        return sorted((reader.look(now) for reader in recent), key=lambda figures: figures.run)

    def _name(self, root: Path, run: Path) -> str:
        """Return the name of a run: its path below the directories that were given."""
        if len(self._roots) > 1:
            return run.relative_to(os.path.commonpath([path.parent for path in self._roots])).as_posix()
        return run.name if run == root else run.relative_to(root).as_posix()


def find_runs(root: Path) -> Iterator[Path]:
    """Yield the directory of every run at or below `root`, without those that another run replaced."""
    if (root / "resolved.json").is_file():
        yield root
        return
    level = [root]
    for _ in range(DEPTH):
        inner = [path for directory in level for path in _directories(directory)]
        runs = {path for path in inner if (path / "resolved.json").is_file()}
        yield from sorted(runs)
        level = [path for path in inner if path not in runs]


def _directories(directory: Path) -> Iterator[Path]:
    try:
        inner = sorted(directory.iterdir())
    except OSError:
        return
    yield from (p for p in inner if not (p.name.startswith(".") or ASIDE.fullmatch(p.name)) and p.is_dir())


def _reader(path: Path, name: str) -> RunReader:
    return RunReader(RunDirectory(path), name)


# -------------------------------------------------------------------------------------------- content


def _parse(line: bytes) -> dict[str, Any] | None:
    try:
        row = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return row if isinstance(row, dict) else None


def _record(row: Mapping[str, Any]) -> Record | None:
    """Return the record on a line of a ledger; None if the line is none. Its digest is left to `rlhf ledger verify`."""
    try:
        numbers = {name: int(row[name]) for name in ("seq", "attempt", "step")}
        details = row["details"] if isinstance(row["details"], dict) else {}
        return Record(**numbers, fact=Fact(row["fact"]), details=details, time=float(row["time"]))
    except (KeyError, ValueError, TypeError):
        return None


def _submitted(attempt: Record) -> float:
    """Return when an attempt began to wait: when its job was submitted, if that is recorded."""
    submitted = attempt.details.get("submitted")
    return min(float(submitted), attempt.time) if isinstance(submitted, int | float) else attempt.time


def _number(value: object) -> float | None:
    """Return a metric's value: NaN for null, which stands for NaN and infinity in JSON; None if it is no number."""
    if value is None:
        return math.nan
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else None


def _object(path: Path) -> dict[str, Any]:
    try:
        return _parse(path.read_bytes()) or {}
    except OSError:
        return {}


def _section(config: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    section = config.get(name)
    return section if isinstance(section, Mapping) else {}


def _changed(path: Path) -> float | None:
    try:
        return path.stat().st_mtime
    except OSError:
        return None
