"""A run directory as it is found, finished or not, whole or damaged: all that a report tells of it.

Nothing here fails because of what lies in the directory: what cannot be read is in `unreadable`, and told.
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
from orchestrator.rundir.directory import RunDirectory
from orchestrator.rundir.incidents import Incident, read_incidents
from orchestrator.rundir.ledger import Record, read_ledger
from workers.types import Sample

Row = Mapping[str, Any]

CAUSES = {
    "completed": "all steps done",
    "budget": "its budget was spent",
    "user": "stopped by Ctrl-C",
    "preempted": "stopped by SIGTERM",
    "worker_failed": "a worker failed",
    "deadline": "a worker did not answer in time",
    "no_heartbeat": "a worker gave no sign of life",
    "host_oom": "a machine had no memory left",
    "fleet_exhausted": "workers died again and again",
    "cluster_lost": "the cluster was lost",
    "disk_full": "the disk was full",
    "bad_input": "bad input",
    "alarm_pause": "paused by an alarm",
    "alarm_stop": "stopped by an alarm",
    "killed": "its driver was killed",
    "driver_died": "its driver died",
}
GOOD = ("completed", "budget")


@dataclass(frozen=True, kw_only=True, slots=True)
class RunRecord:
    """All that is known of one run. Texts are without secrets; they are not escaped."""

    directory: RunDirectory
    name: str  # of the run, or what tells it from another of that name
    config: Mapping[str, Any]  # resolved; empty when it cannot be read
    recipe: str
    rows: tuple[Row, ...]  # of the metrics, oldest first
    exit: Mapping[str, Any] | None
    holder: str | None  # who is at it now
    records: tuple[Record, ...]
    incidents: tuple[Incident, ...]
    held_out: Mapping[int, tuple[Sample, ...]]  # by step: answers to the same prompts
    sampled: Mapping[int, tuple[Sample, ...]]  # by step: answers that were learned from
    unreadable: tuple[str, ...]

    @classmethod
    def read(cls, directory: RunDirectory, name: str = "") -> Self:
        wrong: list[str] = []
        evaluated, sampled = _sample_files(directory.path / "samples")
        return cls(
            directory=directory,
            name=name or directory.name,
            config=_object(directory.resolved, wrong) or {},
            recipe=redact(_text(directory.recipe)),
            rows=tuple(_rows(directory.metrics, wrong)),
            exit=directory.read_exit(),
            holder=directory.holder(),
            records=tuple(_records(directory.ledger, wrong)),
            incidents=tuple(read_incidents(directory.incidents)),
            held_out=dict(_samples(evaluated, wrong)),
            sampled=dict(_samples(_ends_and_middle(sampled), wrong)),
            unreadable=tuple(wrong),
        )

    # ---------------------------------------------------------------------------------------- what it was

    def setting(self, key: str, default: Any = None) -> Any:
        """Of the resolved config. Example: `setting("algorithm.beta")`."""
        value: Any = self.config
        for part in key.split("."):
            value = value.get(part) if isinstance(value, Mapping) else None
        return default if value is None else value

    @property
    def method(self) -> str:
        """As the field calls it: "iterative DPO", "GRPO"."""
        kind, rounds = str(self.setting("algorithm.type", "run")), self.in_rounds
        loss = self.setting("algorithm.loss_type")
        if kind == "dpo":
            name = "DPO" if loss in (None, "sigmoid") else f"DPO ({loss})"
            return f"{'iterative' if rounds else 'offline'} {name}"
        return kind.replace("_", " ") if "_" in kind or kind == "distill" else kind.upper()

    @property
    def in_rounds(self) -> bool:
        return self.setting("algorithm.type") == "dpo" and self.setting("data.prompts") is not None

    @property
    def word(self) -> str:
        return "round" if self.in_rounds else "step"

    @property
    def steps_done(self) -> int:
        return int(self.rows[-1]["step"]) if self.rows else 0

    # ---------------------------------------------------------------------------------------- how it ended

    @property
    def cause(self) -> str:
        """The word of exit.json; "running" and "vanished" where there is none."""
        if self.holder is not None:
            return "running"
        return str(self.exit.get("cause", "error")) if self.exit is not None else "vanished"

    @property
    def is_good(self) -> bool:
        return self.cause in GOOD

    @property
    def ended(self) -> str:
        """In a few words."""
        known = {"running": "still running", "vanished": "ended without a word: killed, or the machine went down"}
        return known.get(self.cause) or CAUSES.get(self.cause) or self.cause.replace("_", " ")

    @property
    def message(self) -> str:
        """What exit.json says, with why and fix where it has them."""
        return redact(str(self.exit.get("message", ""))) if self.exit and not self.is_good else ""

    @property
    def alarms(self) -> list[Alarm]:
        told = (self.exit or {}).get("alarms", ())
        return [a for a in map(_alarm, told if isinstance(told, list) else ()) if a is not None] or self._ringing()

    def _ringing(self) -> list[Alarm]:
        """Of a run without an exit.json that names them: those whose rows say so, by their first row."""
        first: dict[str, int] = {}
        for row in self.rows:
            for key in row:
                if key.startswith("alarms/"):
                    first.setdefault(key.removeprefix("alarms/"), int(row["step"]))
        return [
            Alarm(name=name, step=step, saw="see the curves", why="", fix="see docs/alarms.md", action="warn", rows=1)
            for name, step in first.items()
        ]

    # ---------------------------------------------------------------------------------------- figures

    def curve(self, metric: str) -> list[tuple[int, float]]:
        """(step, value) wherever it was measured."""
        return [(int(r["step"]), float(r[metric])) for r in self.rows if _is_number(r.get(metric))]

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
        """On the clock, over all attempts, from their first to their last record."""
        return sum(a.last - a.placed for a in self.meter.attempts)


def _alarm(told: Any) -> Alarm | None:
    try:
        texts: dict[str, Any] = {key: redact(value) if isinstance(value, str) else value for key, value in told.items()}
        return Alarm(**texts)
    except (TypeError, AttributeError):
        return None


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 1e300


def read_all(directories: Sequence[RunDirectory]) -> list[RunRecord]:
    """Their stories, each with a name that no other of them has."""
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
        found = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError, RecursionError):
        found = None
    if not isinstance(found, dict):
        wrong.append(f"{path.name}: not what was written")
        return None
    return found


def _rows(path: Path, wrong: list[str]) -> Iterator[Row]:
    """Whole lines only; a run that goes on has cut its file before."""
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


def _records(path: Path, wrong: list[str]) -> Sequence[Record]:
    try:
        return read_ledger(path)[0]
    except (RlhfError, OSError) as error:
        wrong.append(f"{path.name}: {str(error).splitlines()[0]}")
        return []


def _sample_files(directory: Path) -> tuple[dict[int, Path], dict[int, Path]]:
    """By step: of held-out prompts, and of those that were learned from."""
    found: tuple[dict[int, Path], dict[int, Path]] = {}, {}
    for path in directory.glob("*.parquet") if directory.is_dir() else ():
        if match := re.fullmatch(r"(eval-)?step-(\d+)", path.stem):
            found[0 if match[1] else 1][int(match[2])] = path
    return found


def _ends_and_middle(files: Mapping[int, Path]) -> dict[int, Path]:
    steps = sorted(files)
    return {steps[i]: files[steps[i]] for i in {0, len(steps) // 2, len(steps) - 1}} if steps else {}


def _samples(files: Mapping[int, Path], wrong: list[str]) -> Iterator[tuple[int, tuple[Sample, ...]]]:
    import pyarrow.parquet as pq

    for step in sorted(files):
        try:
            rows = pq.read_table(files[step]).to_pylist()
            yield step, tuple(_sample(row) for row in rows)
        except Exception as error:  # pyarrow raises what it likes on a damaged file, and a report is still wanted
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
