"""Output of `rlhf why RUN`: how the run ended, the first cause, its log, earlier incidents, and how to resume."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from orchestrator.rundir.directory import COMPLETE, RunDirectory
from orchestrator.rundir.exported import ExportedRound
from orchestrator.rundir.incidents import Incident, read_incidents
from orchestrator.rundir.ledger import Fact, Record, read_ledger

SHOWN = 8  # newest incidents that are listed


def explain(directory: RunDirectory) -> list[str]:
    """Return a few lines about a run that is running, complete, stopped, failed or killed.

    Raises:
        ResumeError: the ledger is damaged.
    """
    records = read_ledger(directory.ledger)[0]
    holder, exit = directory.holder(), directory.read_exit()
    lines = list(_state(directory, records, holder, exit))
    lines += _incidents(read_incidents(directory.incidents))
    if holder is None and (exit is None or exit.get("cause") not in COMPLETE):
        again = "nothing to resume: run the recipe again"
        lines.append(f"resume with: {directory.resume_command}" if records else again)
    return lines


def _state(
    directory: RunDirectory, records: Sequence[Record], holder: str | None, exit: Mapping[str, Any] | None
) -> Iterator[str]:
    run, done = _short(directory.path), _done(records)
    attempt = max((record.attempt for record in records), default=0)
    if holder is not None:
        last = f"; last record in the ledger: {_ago(records[-1].time)}" if records else ""
        yield f"{run} is running: {holder} holds the run's lock, in attempt {attempt}, {done} done{last}"
        yield from _progress(directory.read_progress() or {})
    elif exit is None and not records:
        yield f"{run} was never started"
    elif exit is None:
        yield f"{run} was killed in attempt {attempt}, {done} done, {_ago(records[-1].time)}"
        yield "  its driver wrote no exit.json: SIGKILL, out of memory, power cut, or ended by Ray (cluster lost)"
        yield f"  logs: {_short(directory.logs(attempt))}"
    elif exit.get("cause") in COMPLETE:
        yield f"{run} is complete: {done}, in {attempt} {'attempt' if attempt == 1 else 'attempts'}"
        if exit.get("cause") == "budget":
            yield f"  {exit.get('message')}"
        kind = "data set" if directory.data.is_dir() else "model"
        yield f"  {kind}: {_short(directory.artifact)}"
        if (exported := ExportedRound.of(exit.get("exported"))) is not None:
            yield f"  model: {exported}"
    else:
        yield f"{run} ended in attempt {exit.get('attempt')}, {done} done (exit code {exit.get('exit_code')})"
        yield from _first_cause(directory, exit)


def _progress(progress: Mapping[str, Any]) -> Iterator[str]:
    """Yield the step in progress, and what each role is doing, as progress.json has them."""
    if "step" not in progress:
        return
    total = f" of {progress['num_steps']}" if progress.get("num_steps") else ""
    yield f"  {progress.get('step_word', 'step')} {progress['step']}{total}, {_ago(float(progress.get('time', 0)))}"
    for role, phase in progress.get("phases", {}).items():
        yield f"    {role}: {phase.get('text')}"


def _first_cause(directory: RunDirectory, exit: Mapping[str, Any]) -> Iterator[str]:
    message = str(exit.get("message", "")).splitlines() or ["no message"]
    yield f"  {exit.get('cause')}: {message[0]}"
    yield from (f"  {line}" for line in message[1:] if line.lstrip().startswith(("why:", "fix:")))
    first = exit.get("first_cause") or {}
    log = first.get("log")
    if log and (directory.path / log).exists():
        yield f"  log: {_short(directory.path / log)}"


def _incidents(incidents: Sequence[Incident]) -> Iterator[str]:
    if not incidents:
        return
    yield "incidents:"
    if len(incidents) > SHOWN:
        yield f"  … {len(incidents) - SHOWN} earlier ones in incidents.jsonl"
    for incident in incidents[-SHOWN:]:
        action = incident.action + (f" ({incident.detail})" if incident.detail else "")
        yield f"  attempt {incident.attempt}, after step {incident.step}: {incident.what} → {action}"


def _done(records: Sequence[Record]) -> str:
    """Return the number of steps done, in words. Steps after the checkpoint that was resumed from are not counted."""
    steps = next((r.step for r in reversed(records) if r.fact in (Fact.committed, Fact.attempt, Fact.finished)), 0)
    return "1 step" if steps == 1 else f"{steps} steps"


def _ago(at: float) -> str:
    seconds = max(0.0, time.time() - at)
    for size, word in ((86400, "day"), (3600, "hour"), (60, "minute")):
        if seconds >= size:
            count = int(seconds // size)
            return f"{count} {word}{'s' * (count > 1)} ago"
    return "just now" if seconds < 2 else f"{int(seconds)} seconds ago"


def _short(path: Path) -> str:
    return os.path.relpath(path) if path.is_relative_to(Path.cwd()) else str(path)
