"""Record of a run, read from its directory for reports. The run may be unfinished and its files damaged.

Reading never fails because of the directory's content: problems are collected in `unreadable` and reported.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from orchestrator.errors import RlhfError, redact
from orchestrator.monitor.alarms import Alarm
from orchestrator.rundir.cost import Meter, by_step
from orchestrator.rundir.directory import RunDirectory, in_rounds
from orchestrator.rundir.incidents import Incident, read_incidents
from orchestrator.rundir.ledger import Record, read_ledger
from workers.types import Sample

Row = Mapping[str, Any]

CAUSES = {
    "completed": "all steps done",
    "budget": "budget spent",
    "user": "stopped by a person",
    "preempted": "stopped by a scheduler",
    "worker_failed": "a worker failed",
    "deadline": "a worker did not answer in time",
    "no_heartbeat": "a worker sent no heartbeat",
    "host_oom": "a machine ran out of memory",
    "fleet_exhausted": "workers died too often",
    "cluster_lost": "the cluster was lost",
    "disk_full": "the disk was full",
    "bad_input": "bad input",
    "alarm_pause": "paused by an alarm",
    "alarm_stop": "stopped by an alarm",
    "killed": "the driver was killed",
    "driver_died": "the driver died",
}
GOOD = ("completed", "budget")
FEW_STEPS = 10  # below this number, curves are also drawn over optimiser updates


@dataclass(frozen=True, kw_only=True, slots=True)
class RunRecord:
    """Everything a report shows of one run. Secrets are redacted; texts are not escaped."""

    directory: RunDirectory
    name: str  # name of the run, or a name that is unique in the report
    config: Mapping[str, Any]  # resolved config; empty if it cannot be read
    recipe: str
    rows: tuple[Row, ...]  # rows of metrics, oldest first
    updates: tuple[Row, ...]  # rows of optimiser updates, oldest first
    rounds: Mapping[int, Mapping[str, Any]]  # content of each round.json; empty if steps are not rounds
    exit: Mapping[str, Any] | None  # content of exit.json; None: no such file
    holder: str | None  # process that holds the run's lock; None: the run is not running
    records: tuple[Record, ...]  # records of the ledger
    incidents: tuple[Incident, ...]
    held_out: Mapping[int, tuple[Sample, ...]]  # by step: answers to held-out prompts
    sampled: Mapping[int, tuple[Sample, ...]]  # by step: answers that were trained on
    unreadable: tuple[str, ...]  # files that cannot be read, with the reason

    @classmethod
    def read(cls, directory: RunDirectory, name: str = "", *, samples: bool = True) -> Self:
        """Read a run directory; without its `samples` if nobody will look at them."""
        wrong: list[str] = []
        evaluated, sampled = _sample_files(directory.path / "samples") if samples else ({}, {})
        return cls(
            directory=directory,
            name=name or directory.name,
            config=_object(directory.resolved, wrong) or {},
            recipe=redact(_text(directory.recipe)),
            rows=tuple(_rows(directory.metrics, wrong)),
            updates=tuple(row for row in _rows(directory.updates, wrong) if isinstance(row.get("update"), int)),
            rounds=dict(_rounds(directory.path / "rounds", wrong)),
            exit=directory.read_exit(),
            holder=directory.holder(),
            records=tuple(_records(directory.ledger, wrong)),
            incidents=tuple(read_incidents(directory.incidents)),
            held_out=dict(_samples(evaluated, wrong)),
            sampled=dict(_samples(_ends_and_middle(sampled), wrong)),
            unreadable=tuple(wrong),
        )

    # ---------------------------------------------------------------------------------------- settings

    def setting(self, key: str, default: Any = None) -> Any:
        """Return a setting of the resolved config. Example: `setting("algorithm.beta")`."""
        value: Any = self.config
        for part in key.split("."):
            value = value.get(part) if isinstance(value, Mapping) else None
        return default if value is None else value

    @property
    def method(self) -> str:
        """Name of the method, such as "iterative DPO" or "GRPO"."""
        kind, rounds = str(self.setting("algorithm.type", "run")), self.in_rounds
        loss = self.setting("algorithm.loss_type")
        if kind == "dpo":
            name = "DPO" if loss in (None, "sigmoid") else f"DPO ({loss})"
            return f"{'iterative' if rounds else 'offline'} {name}"
        return kind.replace("_", " ") if "_" in kind or kind == "distill" else kind.upper()

    @property
    def in_rounds(self) -> bool:
        return in_rounds(self.config)

    @property
    def word(self) -> str:
        return "round" if self.in_rounds else "step"

    @property
    def steps_done(self) -> int:
        return int(self.rows[-1]["step"]) if self.rows else 0

    # ---------------------------------------------------------------------------------------- outcome

    @property
    def cause(self) -> str:
        """Cause in exit.json, or "running" or "vanished" without such a file."""
        if self.holder is not None:
            return "running"
        return str(self.exit.get("cause", "error")) if self.exit is not None else "vanished"

    @property
    def is_good(self) -> bool:
        return self.cause in GOOD

    @property
    def ended(self) -> str:
        """Cause in words."""
        vanished = "ended without writing exit.json (killed, or the machine went down)"
        without_exit = {"running": "still running", "vanished": vanished}
        return without_exit.get(self.cause) or CAUSES.get(self.cause) or self.cause.replace("_", " ")

    @property
    def message(self) -> str:
        """Message of exit.json, with its why and fix."""
        return redact(str(self.exit.get("message", ""))) if self.exit and not self.is_good else ""

    @property
    def alarms(self) -> list[Alarm]:
        recorded = (self.exit or {}).get("alarms", ())
        alarms = [a for a in map(_alarm, recorded if isinstance(recorded, list) else ()) if a is not None]
        return alarms or self._alarms_of_rows()

    def _alarms_of_rows(self) -> list[Alarm]:
        """Return the alarms that the rows of metrics contain, each with its first step."""
        first: dict[str, int] = {}
        for row in self.rows:
            for key in row:
                if key.startswith("alarms/"):
                    first.setdefault(key.removeprefix("alarms/"), int(row["step"]))
        return [
            Alarm(name=name, step=step, saw="see the curves", why="", fix="see docs/alarms.md", action="warn", rows=1)
            for name, step in first.items()
        ]

    # ---------------------------------------------------------------------------------------- metrics and cost

    def curve(self, metric: str) -> list[tuple[int, float]]:
        """Return (step, value) of every row that has the metric."""
        return [(int(r["step"]), float(r[metric])) for r in self.rows if _is_number(r.get(metric))]

    def update_curve(self, metric: str) -> list[tuple[int, float]]:
        """Return (update, value) of every optimiser update that has the metric."""
        return [(row["update"], float(row[metric])) for row in self.updates if _is_number(row.get(metric))]

    @property
    def has_long_steps(self) -> bool:
        """True if a curve over the run's steps has few points, and one over its updates has more."""
        return len(self.rows) < FEW_STEPS and len(self.updates) > len(self.rows)

    def total(self, metric: str) -> float:
        return sum(value for _, value in self.curve(metric))

    @property
    def meter(self) -> Meter:
        return Meter(self.records)

    @property
    def cost_by_step(self) -> dict[int, tuple[float, float]]:
        return by_step(self.records)

    @property
    def seconds(self) -> float:
        """Wall-clock seconds over all attempts, each from its placement to its last record."""
        return sum(a.last - a.placed for a in self.meter.attempts)


def _alarm(recorded: Any) -> Alarm | None:
    try:
        fields: dict[str, Any] = {k: redact(v) if isinstance(v, str) else v for k, v in recorded.items()}
        return Alarm(**fields)
    except (TypeError, AttributeError):
        return None


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 1e300


def read_all(directories: Sequence[RunDirectory]) -> list[RunRecord]:
    """Read several runs. Runs of equal name are named by the parts of their paths that differ."""
    parts = [directory.path.parts for directory in directories]
    length = 1
    while len({p[-length:] for p in parts}) < len(parts) and length < max(map(len, parts)):
        length += 1
    differ = [i for i in range(1, length + 1) if len({p[-i] if i <= len(p) else "" for p in parts}) > 1]
    names = [" / ".join(p[-i] for i in reversed(differ) if i <= len(p)) for p in parts]
    return [RunRecord.read(directory, name) for directory, name in zip(directories, names, strict=True)]


# -------------------------------------------------------------------------------------------- files


def _text(path: Path) -> str:
    try:
        return path.read_text("utf-8", "replace")
    except OSError:
        return ""


def _object(path: Path, wrong: list[str]) -> dict[str, Any] | None:
    try:
        content = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError, RecursionError):
        content = None
    if not isinstance(content, dict):
        wrong.append(f"{path.name}: missing or damaged")
        return None
    return content


def _rows(path: Path, wrong: list[str]) -> Iterator[Row]:
    """Yield the complete rows, and count the others."""
    bad = 0
    for line in _text(path).splitlines():
        try:
            row = json.loads(line)
            if isinstance(row, dict) and isinstance(row["step"], int):
                yield row
                continue
        except (ValueError, KeyError, RecursionError):
            pass
        bad += 1
    if bad:
        wrong.append(f"{path.name}: {bad} line{'s' * (bad > 1)} cannot be read")


def _rounds(directory: Path, wrong: list[str]) -> Iterator[tuple[int, Mapping[str, Any]]]:
    """Yield the number and the content of each round.json, in order."""
    numbers = sorted(int(p.name) for p in directory.glob("*") if p.name.isdecimal()) if directory.is_dir() else []
    for number in numbers:
        path = directory / str(number) / "round.json"
        if path.exists() and (content := _object(path, wrong)) is not None:
            yield number, content


def _records(path: Path, wrong: list[str]) -> Sequence[Record]:
    try:
        return read_ledger(path)[0]
    except (RlhfError, OSError) as error:
        wrong.append(f"{path.name}: {str(error).splitlines()[0]}")
        return []


def _sample_files(directory: Path) -> tuple[dict[int, Path], dict[int, Path]]:
    """Return the sample files by step: those of held-out prompts, and those of training prompts."""
    files: tuple[dict[int, Path], dict[int, Path]] = {}, {}
    for path in directory.glob("*.parquet") if directory.is_dir() else ():
        if match := re.fullmatch(r"(eval-)?step-(\d+)", path.stem):
            files[0 if match[1] else 1][int(match[2])] = path
    return files


def _ends_and_middle(files: Mapping[int, Path]) -> dict[int, Path]:
    steps = sorted(files)
    return {steps[i]: files[steps[i]] for i in {0, len(steps) // 2, len(steps) - 1}} if steps else {}


def _samples(files: Mapping[int, Path], wrong: list[str]) -> Iterator[tuple[int, tuple[Sample, ...]]]:
    import pyarrow.parquet as pq

    for step in sorted(files):
        try:
            rows = pq.read_table(files[step]).to_pylist()
            yield step, tuple(_sample(row) for row in rows)
        except Exception as error:  # pyarrow raises many types on a damaged file
            wrong.append(f"samples/{files[step].name}: {type(error).__name__}")


def _sample(row: Mapping[str, Any]) -> Sample:
    return Sample(
        prompt_id=str(row["prompt_id"]),
        prompt=redact(str(row["prompt"])),
        completion=redact(str(row["completion"])),
        reward=float(row["reward"]),
        version=int(row["version"]),
        finish=str(row["finish"]),
        length=int(row["length"]),
    )
