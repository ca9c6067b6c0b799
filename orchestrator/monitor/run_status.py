"""Status of a run, from its directory: how far it is, how fast, what it waits for, its alarms, and how it ended.

Only the ends of the ledger and of the metrics are read, so a run of any length is answered at once.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from orchestrator.monitor.figures import duration, headlines, number
from orchestrator.rundir.directory import COMPLETE, RunDirectory, in_rounds
from orchestrator.rundir.ledger import Fact

TAIL_BYTES = 256 * 1024
SPEED_STEPS = 5  # newest steps whose mean is the speed
KILLED = 137  # exit code of a run whose driver wrote no exit.json, as a shell reports SIGKILL
STOP_CODES = (130, 143)


@dataclass(frozen=True, kw_only=True, slots=True)
class RunStatus:
    """State of a run. None: unknown.

    Example: `RunStatus(run="arith", directory="/shared/runs/arith", state="RUNNING", attempt=1, step=12)`.
    """

    run: str
    directory: str
    state: str  # QUEUED (waits for room), STARTING, RUNNING, SUCCEEDED, FAILED or STOPPED
    attempt: int
    step: int  # steps done
    step_word: str = "step"
    num_steps: int | None = None
    step_s: float | None = None  # seconds per step: mean of the newest
    tokens_per_s: float | None = None
    left_s: float | None = None  # estimate
    waits_for: str = ""
    phases: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)  # of progress.json
    metrics: Mapping[str, float] = field(default_factory=dict)  # headlines of the newest step
    alarms: Mapping[str, int] = field(default_factory=dict)  # name -> step at which it began
    exit: Mapping[str, Any] | None = None  # cause, message, exit_code and resume of exit.json
    holder: str | None = None  # process that runs it

    @property
    def exit_code(self) -> int:
        """Exit code of the run; 0 while it runs."""
        if self.exit is not None:
            return int(self.exit.get("exit_code") or 0)
        return KILLED if self.state == "FAILED" else 0

    def rows(self) -> Iterator[tuple[str, str]]:
        """Yield what to show: a label and a text."""
        total = f" of {self.num_steps}" if self.num_steps else ""
        yield "run", self.directory
        yield "attempt", str(self.attempt) if self.attempt else ""
        yield self.step_word, f"{self.step}{total} done" if self.attempt else ""
        yield "waits for", self.waits_for
        for role, phase in self.phases.items():
            if phase.get("text") != self.waits_for:
                yield role, str(phase.get("text", ""))
        speed = [f"{duration(self.step_s)}/{self.step_word}"] if self.step_s is not None else []
        speed += [f"{self.tokens_per_s:,.0f} tokens/s"] if self.tokens_per_s is not None else []
        yield "speed", "  ".join(speed)
        yield "time left", duration(self.left_s) if self.left_s is not None else ""
        shown = headlines(dict(self.metrics), 8)
        yield "metrics", "  ".join(f"{h.label} {number(self.metrics[h.name], share=h.share)}" for h in shown)
        yield "alarms", ", ".join(f"{name} (since {self.step_word} {step})" for name, step in self.alarms.items())
        if self.exit is not None and self.exit.get("cause") not in COMPLETE:
            message = str(self.exit.get("message", "")).splitlines()
            yield "ended", f"{self.exit.get('cause')}: {message[0] if message else ''}"
            yield "resume", str(self.exit.get("resume") or "")
        elif self.exit is None and self.state == "FAILED":
            yield "ended", "killed: its driver wrote no exit.json"


def current_stage(directories: Sequence[Path]) -> RunDirectory:
    """Return the stage in progress of a job: one that a driver holds, else the last that has begun.

    Raises:
        ResumeError: none has begun.
    """
    begun = [directory for path in directories if (directory := RunDirectory(path.absolute())).resolved.is_file()]
    held = next((directory for directory in begun if directory.holder() is not None), None)
    return held or (begun[-1] if begun else RunDirectory.open(directories[-1]))


def read_status(directory: RunDirectory) -> RunStatus:
    """Return the status of a run. Lines that are damaged are skipped."""
    holder, exit, attempt = directory.holder(), directory.read_exit(), directory.last_attempt
    progress = (directory.read_progress() or {}) if holder is not None else {}
    facts = [row for row in _tail(directory.ledger) if {"fact", "step", "attempt"} <= row.keys()]
    rows = [row for row in _tail(directory.metrics) if isinstance(row.get("step"), int)]
    counted = (Fact.committed, Fact.attempt, Fact.finished)
    done = next((int(fact["step"]) for fact in reversed(facts) if fact["fact"] in counted), 0)
    has_rounds, num_steps = _schedule(directory)
    num_steps = progress.get("num_steps") or num_steps
    seconds = [row["timing/step"] for row in rows[-SPEED_STEPS:] if isinstance(row.get("timing/step"), int | float)]
    step_s = sum(seconds) / len(seconds) if seconds else None
    newest = {name: v for name, v in (rows[-1] if rows else {}).items() if isinstance(v, int | float)}
    phases = progress.get("phases") if isinstance(progress.get("phases"), Mapping) else {}
    waits_for = _waits_for(phases or {})
    placed = any(fact["attempt"] == attempt and fact["fact"] != Fact.attempt for fact in facts)
    return RunStatus(
        run=directory.name,
        directory=str(directory.path),
        state=_state(holder, exit, attempt, waits=bool(waits_for), placed=placed),
        attempt=attempt,
        step=done,
        step_word="round" if has_rounds else "step",
        num_steps=num_steps,
        step_s=step_s,
        tokens_per_s=newest.get("throughput/tokens_per_s"),
        left_s=(num_steps - done) * step_s if holder and num_steps and step_s is not None else None,
        waits_for=waits_for,
        phases=phases or {},
        metrics={h.name: newest[h.name] for h in headlines(newest, 8)},
        alarms=_alarms(directory.metrics),
        exit=None if exit is None or holder is not None else _ending(exit),
        holder=holder,
    )


def _state(holder: str | None, exit: Mapping[str, Any] | None, attempt: int, *, waits: bool, placed: bool) -> str:
    if holder is not None:
        return "QUEUED" if waits else "RUNNING" if placed else "STARTING"
    if exit is None:
        return "FAILED" if attempt else "STARTING"
    if exit.get("cause") in COMPLETE:
        return "SUCCEEDED"
    return "STOPPED" if exit.get("exit_code") in STOP_CODES else "FAILED"


def _ending(exit: Mapping[str, Any]) -> Mapping[str, Any]:
    return {key: exit.get(key) for key in ("cause", "message", "exit_code", "resume", "first_cause")}


def _waits_for(phases: Mapping[str, Any]) -> str:
    """Return what the driver waits for, as its phase says; empty if it does not wait."""
    texts = [str(phase.get("text", "")) for phase in phases.values() if isinstance(phase, Mapping)]
    return next((text for text in texts if text.startswith(("wait", "waits", "waiting"))), "")


def _schedule(directory: RunDirectory) -> tuple[bool, int | None]:
    """Return whether steps are rounds, and the number of steps if the recipe gives it."""
    try:
        config = json.loads(directory.resolved.read_text("utf-8"))
        return in_rounds(config), config["algorithm"].get("max_steps")
    except (OSError, ValueError, AttributeError, KeyError, TypeError):
        return False, None


def _alarms(metrics: Path) -> Mapping[str, int]:
    """Return the alarms so far, each with its first step. Only lines that name one are parsed."""
    first: dict[str, int] = {}
    if metrics.exists():
        with metrics.open("rb") as lines:
            for line in lines:
                if b'"alarms/' in line and (row := _row(line)):
                    for key in row:
                        if key.startswith("alarms/"):
                            first.setdefault(key.removeprefix("alarms/"), int(row.get("step", 0)))
    return first


def _tail(path: Path) -> list[dict[str, Any]]:
    """Return the complete rows in the last TAIL_BYTES of a file of JSON lines."""
    if not path.exists():
        return []
    with path.open("rb") as file:
        size = file.seek(0, 2)
        file.seek(max(0, size - TAIL_BYTES))
        text = file.read()
    lines = text[: text.rfind(b"\n") + 1].split(b"\n")
    return [row for line in (lines if size <= TAIL_BYTES else lines[1:]) if (row := _row(line))]


def _row(line: bytes) -> dict[str, Any]:
    try:
        row = json.loads(line)
    except ValueError:
        return {}
    return row if isinstance(row, dict) else {}
