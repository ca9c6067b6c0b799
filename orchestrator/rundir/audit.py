"""Whether a run directory says the truth: ledger, checkpoints and rollouts against their hashes, steps by arithmetic.

    ledger        whole records, in the order in which things happen, and how each attempt found the one before
    steps         every one learned from, none of them twice (`account`)
    checkpoints   each file as its manifest has it; every one that the ledger calls complete was
    rollouts      each file that a checkpoint may still need, as the ledger has it
    model         there, when the run says that it is finished

It reads; it changes nothing, and it loads nothing of a checkpoint.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from orchestrator.errors import ResumeError
from orchestrator.rundir.directory import RunDirectory
from orchestrator.rundir.ledger import Fact, Record, account, checkpointed, read_ledger
from orchestrator.rundir.manifest import damage, list_checkpoints, position_of, step_of, verify

IN_ORDER = (Fact.planned, Fact.trained, Fact.published, Fact.committed)  # of a step, within an attempt
AHEAD = (Fact.generated, Fact.scored)  # engines may sample for a step before its turn comes, or an attempt before did


@dataclass(frozen=True, kw_only=True, slots=True)
class Finding:
    """Example: `Finding(good=False, what="checkpoints/step-3", why="state.json is not what was written")`."""

    good: bool
    what: str
    why: str


def audit(directory: RunDirectory) -> list[Finding]:
    """Everything that was checked, good or not."""
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
        *_checkpoints(directory, records),
        *_rollouts(directory, records),
        *_model(directory, records),
    ]


def _ledger(records: Sequence[Record], torn_bytes: int) -> Iterator[Finding]:
    attempts = sum(r.fact == Fact.attempt for r in records)
    torn = f"; {torn_bytes} bytes of half a record at its end do not count" if torn_bytes else ""
    wrong = list(_disorder(records))
    counted = f"{len(records)} records of {attempts} attempt{'s' * (attempts != 1)}, each with its hash{torn}"
    yield Finding(good=not wrong, what="ledger", why="; ".join(wrong[:5]) or counted)


def _disorder(records: Sequence[Record]) -> Iterator[str]:
    """What cannot have happened in this order."""
    attempt, done, scored = 0, dict[int, int](), set[int]()
    for r in records:
        where = f"record {r.seq} ({r.fact} {r.step})"
        if r.fact == Fact.attempt:
            if r.attempt <= attempt:
                yield f"{where} is of attempt {r.attempt}, after attempt {attempt}"
            attempt, done = r.attempt, {}
        elif r.attempt != attempt:
            yield f"{where} is of attempt {r.attempt}, within attempt {attempt}"
        elif r.fact == Fact.scored:
            scored.add(r.step)
        elif r.fact in IN_ORDER:
            count = done.get(r.step, 0)
            if count == len(IN_ORDER) or r.fact != IN_ORDER[count]:
                yield f"{where} does not follow what its step has done: {', '.join(IN_ORDER[:count]) or 'nothing'}"
            if r.fact == Fact.trained and r.step not in scored:
                yield f"{where} learned from what was never scored"
            done[r.step] = count + 1


def _steps(records: Sequence[Record]) -> Finding:
    told = account(records)
    if told.lost or told.repeated:
        parts = [f"never learned from: {_listed(told.lost)}"] if told.lost else []
        parts += [f"learned from more than once: {_listed(told.repeated)}"] if told.repeated else []
        return Finding(good=False, what="steps", why="; ".join(parts))
    redone = f"; {told.redone} more were learned, lost with a fault and learned again" if told.redone else ""
    return Finding(good=True, what="steps", why=f"{told.trained} learned from once, none lost, none repeated{redone}")


def _checkpoints(directory: RunDirectory, records: Sequence[Record]) -> Iterator[Finding]:
    found = list_checkpoints(directory.checkpoints)
    for checkpoint in found:
        wrong = verify(checkpoint)
        yield Finding(
            good=not wrong, what=_name(checkpoint, directory), why=wrong or "every file as its manifest has it"
        )
    expected = checkpointed(records)
    if expected is not None and (not found or position_of(found[-1]) < expected):
        why = "the ledger calls it complete, and it is not there"
        yield Finding(good=False, what=_name(directory.checkpoint(expected[0]), directory), why=why)


def _rollouts(directory: RunDirectory, records: Sequence[Record]) -> Iterator[Finding]:
    """Of steps after the oldest checkpoint: the others were dropped on purpose."""
    oldest = min((step_of(c) for c in list_checkpoints(directory.checkpoints)), default=0)
    last = {(r.step, r.fact): r.details for r in records if r.fact in AHEAD and r.step > oldest}
    files = [file for details in last.values() for file in details.get("files", ())]
    wrong = list(filter(None, (damage(directory.path, file) for file in files)))
    for why in wrong:
        yield Finding(good=False, what="rollouts", why=f"{why}; its step would be sampled or scored anew")
    if files and not wrong:
        yield Finding(good=True, what="rollouts", why=f"{len(files)} files as the ledger has them")


def _model(directory: RunDirectory, records: Sequence[Record]) -> Iterator[Finding]:
    if any(r.fact == Fact.finished for r in records):
        there = directory.model.is_dir()
        why = "written" if there else "the ledger says that the run is finished, and there is none"
        yield Finding(good=there, what="model", why=why)


def _name(path: Path, directory: RunDirectory) -> str:
    return str(path.relative_to(directory.path))


def _listed(steps: Sequence[int]) -> str:
    return ", ".join(map(str, steps[:8])) + (f" and {len(steps) - 8} more" if len(steps) > 8 else "")
