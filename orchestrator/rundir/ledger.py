"""Ledger of a run: an append-only file that records what is done. It is the only source of truth; actors are caches.

    PLANNED → GENERATED → SCORED → TRAINED → PUBLISHED → COMMITTED        of every step
    ATTEMPT (a driver starts)   PLACED (its workers are reserved)   CHECKPOINT (one is complete)
    FINISHED (the model is written)   ALARM (one that ends the run or rolls it back)
    PROMOTION (decision of the safety gate on the model)

One JSON object per line: schema version, sequence number, the fact, and a SHA-256 of these. A record is written in one
call and fsynced before `append` returns; it counts once its line is complete. Sequence numbers define the order; times
are for people.
"""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from itertools import islice
from pathlib import Path
from typing import Any, Protocol, Self

from orchestrator import disk
from orchestrator.errors import Problem, ResumeError

SCHEMA = 1
MOST_LOST = 1000
"""Maximum number of lost steps that `account` lists: a damaged record may name any step number."""


class Fact(StrEnum):
    """Event that a record stands for."""

    attempt = "ATTEMPT"
    placed = "PLACED"
    planned = "PLANNED"
    generated = "GENERATED"
    scored = "SCORED"
    trained = "TRAINED"
    published = "PUBLISHED"
    committed = "COMMITTED"
    checkpoint = "CHECKPOINT"
    finished = "FINISHED"
    alarm = "ALARM"
    promotion = "PROMOTION"


STORED = (Fact.generated, Fact.scored)
"""Facts of a chunk whose files are listed in `details`."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Record:
    """One line of the ledger.

    Example: `Record(seq=7, attempt=1, step=2, fact=Fact.committed, details={}, time=1.7e9)`.
    """

    seq: int  # from 0, without gaps
    attempt: int
    step: int  # from 1; in a record about the whole run, the number of steps done
    fact: Fact
    details: Mapping[str, Any]
    time: float  # Unix seconds, for people

    @property
    def rolled_back_to(self) -> int | None:
        """Number of steps that are kept, if the record stands for a rollback."""
        is_rollback = self.fact == Fact.alarm and self.details["action"] == "roll_back"
        return self.details["target"] if is_rollback else None

    def line(self) -> bytes:
        body = {
            "v": SCHEMA,
            "seq": self.seq,
            "attempt": self.attempt,
            "step": self.step,
            "fact": str(self.fact),
            "details": dict(self.details),
            "time": self.time,
        }
        return json.dumps({**body, "sha256": _digest(body)}, allow_nan=False).encode() + b"\n"


class Copies(Protocol):
    """Receiver of a copy of each record, in order."""

    def claim(self, record: Record) -> None:
        """Store the first record of an attempt. Raises Superseded if another driver has stored one of its number."""
        ...

    def send(self, record: Record) -> None:
        """Take a further record, which is written, to store it in the background."""
        ...


class Ledger:
    """Ledger that is open for appending.

    `torn_bytes` is the size of the incomplete record that was removed from its end when it was opened. `fence` is
    called before each append and raises if another driver has taken over the run. `copies` may be set at any time.
    """

    def __init__(self, path: Path, records: list[Record], torn_bytes: int, fence: Callable[[], None]) -> None:
        self.path, self.torn_bytes, self.fence = path, torn_bytes, fence
        self.copies: Copies | None = None
        self._records = records
        self._file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)

    @classmethod
    def open(cls, path: Path, fence: Callable[[], None] = lambda: None) -> Self:
        """Open a ledger for appending, creating it if needed. Remove an incomplete record at its end.

        Raises:
            ResumeError: a record other than the last one is damaged.
        """
        existed = path.exists()
        records, good_bytes, size = read_ledger(path)
        if size > good_bytes:
            os.truncate(path, good_bytes)
        ledger = cls(path, records, size - good_bytes, fence)
        os.fsync(ledger._file)
        if not existed:
            disk.sync_directory(path.parent)
        return ledger

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def records(self) -> tuple[Record, ...]:
        return tuple(self._records)

    def append(self, fact: Fact, *, attempt: int, step: int, **details: Any) -> Record:
        """Write one record and fsync it.

        Raises:
            OSError: the record could not be written completely (a full disk); none of it counts.
            Superseded: another driver has taken over the run.
        """
        self.fence()
        record = Record(
            seq=len(self._records),
            attempt=attempt,
            step=step,
            fact=fact,
            details=details,
            time=round(time.time(), 3),
        )
        if self.copies is not None and fact == Fact.attempt:
            self.copies.claim(record)
        disk.append(self._file, record.line())
        self._records.append(record)
        if self.copies is not None and fact != Fact.attempt:
            self.copies.send(record)
        return record

    def last(self, fact: Fact) -> Record | None:
        return next((r for r in reversed(self._records) if r.fact == fact), None)

    def refuse_gaps(self, next_step: int) -> None:
        """Check that the records contain each of the `next_step` steps that a checkpoint has trained, once.

        Raises:
            ResumeError: steps are missing, or recorded more than once.
        """
        steps = account(self._records)
        if steps.trained == next_step and not steps.lost and not steps.repeated:
            return
        raise ResumeError(
            Problem(
                what=f"the ledger records {steps.trained} trained steps, the checkpoint {next_step}",
                where=str(self.path),
                why="records were removed from the ledger, or the checkpoint belongs to another run",
                fix="restore the run directory from a backup, or run the recipe under another name",
            )
        )

    def close(self) -> None:
        if self._file >= 0:
            os.close(self._file)
            self._file = -1


def read_ledger(path: Path) -> tuple[list[Record], int, int]:
    """Return (records, bytes they take, size of the file in bytes).

    An incomplete record at the end is ignored. So is a record that a superseded driver appended after it had checked
    the fence.

    Raises:
        ResumeError: intact records follow a damaged one, which an interrupted append cannot cause.
    """
    raw = path.read_bytes() if path.exists() else b""
    records: list[Record] = []
    good_bytes = 0
    lines = raw.splitlines(keepends=True)
    for number, line in enumerate(lines, start=1):
        record = parse(line, len(records))
        if record is None and _is_stray(line, records):
            good_bytes += len(line)
            continue
        if record is None:
            if any(parse(later, None) for later in lines[number:]):
                raise ResumeError(
                    Problem(
                        what="a record is damaged, but later ones are intact",
                        where=f"{path}:{number}",
                        why="the file was edited, or the disk lost part of it",
                        fix="restore it from a backup, or run the recipe under another name",
                    )
                )
            break
        records.append(record)
        good_bytes += len(line)
    return records, good_bytes, len(raw)


@dataclass(frozen=True, kw_only=True, slots=True)
class Account:
    """Steps that the weights of a run were trained on, over all its attempts.

    An attempt resumes from a checkpoint: steps trained after that checkpoint are discarded and trained again.
    Example: steps 1, 2, 3, a kill, then 3 and 4 from the checkpoint of step 2: `trained=4`, `redone=1`.
    """

    trained: int  # steps that the final weights were trained on
    lost: tuple[int, ...]  # steps missing before the last trained one; at most MOST_LOST of them
    repeated: tuple[int, ...]  # steps trained more than once
    redone: int  # steps discarded and trained again


def account(records: Sequence[Record]) -> Account:
    """Count trained, lost, repeated and redone steps from the records alone."""
    history: list[int] = []
    redone = 0
    for record in records:
        if record.fact == Fact.attempt:
            kept = [step for step in history if step <= record.step]
            redone += len(history) - len(kept)
            history = kept
        elif record.fact == Fact.trained:
            history.append(record.step)
    last, times = max(history, default=0), Counter(history)
    return Account(
        trained=len(history),
        lost=tuple(islice((step for step in range(1, last + 1) if step not in times), MOST_LOST)),
        repeated=tuple(sorted(step for step, count in times.items() if count > 1)),
        redone=redone,
    )


def checkpointed(records: Sequence[Record]) -> tuple[int, int] | None:
    """Return (steps done, updates of the next step) of the newest checkpoint that must exist; None if none must.

    The ledger lists it as complete and the run was not rolled back afterwards. Newer checkpoints may exist.
    """
    newest: tuple[int, int] | None = None
    for record in records:
        if record.fact == Fact.checkpoint:
            newest = (record.step, record.details.get("updates", 0))
        elif record.fact == Fact.attempt:
            newest = (record.step, 0) if record.step else None
        elif record.fact == Fact.alarm and record.details.get("action") == "roll_back":
            newest = None
    return newest


def _is_stray(line: bytes, records: Sequence[Record]) -> bool:
    """Return True for an intact record of an attempt older than the one whose records precede it."""
    record = parse(line, None)
    return record is not None and bool(records) and record.attempt < records[-1].attempt


def parse(line: bytes, seq: int | None) -> Record | None:
    """Return the record on a line; None if it is incomplete, damaged, or (given `seq`) out of sequence."""
    if not line.endswith(b"\n"):
        return None
    try:
        body = json.loads(line)
        digest = body.pop("sha256")
        if digest != _digest(body) or body.pop("v") != SCHEMA or (seq is not None and body["seq"] != seq):
            return None
        record = Record(**{**body, "fact": Fact(body["fact"])})
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return None
    numbers = (record.seq, record.attempt, record.step)
    return record if all(type(n) is int for n in numbers) and isinstance(record.details, dict) else None


def _digest(body: Mapping[str, Any]) -> str:
    canonical = json.dumps(body, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(canonical.encode()).hexdigest()
