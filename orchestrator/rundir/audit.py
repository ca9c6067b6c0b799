"""Audit of a run directory: ledger, checkpoints and rollouts against their hashes, steps by counting.

    ledger        complete records in a possible order, within each attempt and across attempts
    steps         every step trained, none of them twice (`account`)
    checkpoints   each file matches its manifest; every checkpoint that the ledger lists is present
    rollouts      each file that a checkpoint may still need matches the ledger
    model         present if the ledger says that the run is finished, with the weights that its manifest lists

The audit only reads. It loads no model or optimizer state.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from orchestrator.errors import ResumeError
from orchestrator.rundir.directory import RunDirectory
from orchestrator.rundir.ledger import Fact, Record, account, checkpointed, read_ledger
from orchestrator.rundir.manifest import (
    MANIFEST,
    MISSING,
    WEIGHTS,
    damage,
    files_of,
    list_checkpoints,
    position_of,
    step_of,
    verify,
)
from orchestrator.rundir.stored import StoredRun

IN_ORDER = (Fact.planned, Fact.trained, Fact.published, Fact.committed)  # facts of one step within an attempt
AHEAD = (Fact.generated, Fact.scored)  # may precede PLANNED, or stem from an earlier attempt: rollouts run ahead


@dataclass(frozen=True, kw_only=True, slots=True)
class Finding:
    """Result of one check.

    Example: `Finding(good=False, what="checkpoints/step-3", why="state.json is not what was written")`.
    """

    good: bool
    what: str
    why: str


def audit(directory: RunDirectory, stored: StoredRun | None = None) -> list[Finding]:
    """Run all checks on a run directory and return their results, good and bad.

    `stored`: its twin in object storage, which may have what is not here; None: it has none.
    """
    try:
        records, good_bytes, size = read_ledger(directory.ledger)
    except ResumeError as error:
        problem = error.problems[0]
        return [Finding(good=False, what=problem.where, why=f"{problem.what}; {problem.why}")]
    if not records:
        return [Finding(good=False, what="ledger", why="no record: the run never started")]
    return [
        *_ledger(records, size - good_bytes),
        _steps(records),
        *_checkpoints(directory, records, stored),
        *_rollouts(directory, records, stored),
        *_model(directory, records, stored),
    ]


def _ledger(records: Sequence[Record], torn_bytes: int) -> Iterator[Finding]:
    attempts = sum(r.fact == Fact.attempt for r in records)
    torn = f"; {torn_bytes} bytes of an incomplete record at its end are ignored" if torn_bytes else ""
    wrong = list(_disorder(records))
    counted = f"{len(records)} records of {attempts} attempt{'s' * (attempts != 1)}, all hashes match{torn}"
    yield Finding(good=not wrong, what="ledger", why="; ".join(wrong[:5]) or counted)


def _disorder(records: Sequence[Record]) -> Iterator[str]:
    """Yield a message for each record that cannot have been written at its position."""
    attempt, done, scored = 0, dict[int, int](), set[int]()
    for r in records:
        where = f"record {r.seq} ({r.fact} {r.step})"
        if r.fact == Fact.attempt:
            if r.attempt <= attempt:
                yield f"{where} belongs to attempt {r.attempt}, but follows attempt {attempt}"
            attempt, done = r.attempt, {}
        elif r.attempt != attempt:
            yield f"{where} belongs to attempt {r.attempt}, but stands within attempt {attempt}"
        elif r.fact == Fact.scored:
            scored.add(r.step)
        elif r.fact in IN_ORDER:
            count = done.get(r.step, 0)
            if count == len(IN_ORDER) or r.fact != IN_ORDER[count]:
                yield f"{where} is out of order, after {', '.join(IN_ORDER[:count]) or 'nothing'} of the same step"
            if r.fact == Fact.trained and r.step not in scored:
                yield f"{where} follows no SCORED record of its step"
            done[r.step] = count + 1


def _steps(records: Sequence[Record]) -> Finding:
    steps = account(records)
    if steps.lost or steps.repeated:
        parts = [f"never trained: {_listed(steps.lost)}"] if steps.lost else []
        parts += [f"trained more than once: {_listed(steps.repeated)}"] if steps.repeated else []
        return Finding(good=False, what="steps", why="; ".join(parts))
    redone = f"; {steps.redone} more were lost in a failure and trained again" if steps.redone else ""
    return Finding(good=True, what="steps", why=f"{steps.trained} trained once, none lost, none repeated{redone}")


def _checkpoints(directory: RunDirectory, records: Sequence[Record], stored: StoredRun | None) -> Iterator[Finding]:
    checkpoints = list_checkpoints(directory.checkpoints)
    for checkpoint in checkpoints:
        wrong = verify(checkpoint) if stored is None else stored.damage(checkpoint)
        yield Finding(good=not wrong, what=_name(checkpoint, directory), why=wrong or "all files match the manifest")
    expected = checkpointed(records) if stored is None else None
    if expected is not None and (not checkpoints or position_of(checkpoints[-1]) < expected):
        yield Finding(good=False, what=_name(directory.checkpoint(expected[0]), directory), why=MISSING)


def _rollouts(directory: RunDirectory, records: Sequence[Record], stored: StoredRun | None) -> Iterator[Finding]:
    """Check the rollouts of steps after the oldest checkpoint; earlier ones were deleted on purpose."""
    oldest = min((step_of(c) for c in list_checkpoints(directory.checkpoints)), default=0)
    last: dict[tuple[int, int, Fact], Mapping[str, Any]] = {}
    for r in records:
        if r.fact in AHEAD and r.step > oldest:
            last[r.step, r.details.get("chunk", 0), r.fact] = r.details
        elif (target := r.rolled_back_to) is not None:  # the steps after it are sampled anew
            last = {key: details for key, details in last.items() if key[0] <= target}
    files = [file for details in last.values() for file in details.get("files", ())]
    away = [] if stored is None else [f for f in files if stored.has(f["path"], f["bytes"])]
    wrong = list(filter(None, (damage(directory.path, file) for file in files if file not in away)))
    for why in wrong:
        yield Finding(good=False, what="rollouts", why=f"{why}; its step would be sampled or scored again")
    if files and not wrong:
        yield Finding(good=True, what="rollouts", why=f"{len(files)} files match the ledger")


def _model(directory: RunDirectory, records: Sequence[Record], stored: StoredRun | None) -> Iterator[Finding]:
    if any(r.fact == Fact.finished for r in records):
        wrong = "" if directory.model.is_dir() else "missing, although the ledger says that the run is finished"
        if (directory.model / MANIFEST).is_file() and stored is not None:
            files = files_of(directory.model)
            gone = [name for name, file in files.items() if not stored.has(f"model/{name}", file["bytes"])]
            wrong = f"{gone[0]} is missing in {stored.storage.url}" if gone else ""
        elif (directory.model / MANIFEST).is_file():
            wrong = verify(directory.model, only=WEIGHTS)  # people edit the other files
        yield Finding(good=not wrong, what="model", why=wrong or "written")


def _name(path: Path, directory: RunDirectory) -> str:
    return str(path.relative_to(directory.path))


def _listed(steps: Sequence[int]) -> str:
    return ", ".join(map(str, steps[:8])) + (f" and {len(steps) - 8} more" if len(steps) > 8 else "")
