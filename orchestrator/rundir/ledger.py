"""The ledger: one append-only file per run that says what is done. The only truth; actors are caches.

    PLANNED → GENERATED → SCORED → TRAINED → PUBLISHED → COMMITTED        of every step
    ATTEMPT (a driver starts)   PLACED (its workers are reserved)   CHECKPOINT (one is complete)
    FINISHED (the model is written)   ALARM (one that ends the run, or sends it back)
    PROMOTION (whether the safety gate lets the model out)

One JSON object per line: schema version, sequence number, the fact, and a SHA-256 of all that. A record is
written in one call and fsynced before `append` returns; it counts when its line is whole. Sequence numbers
tell the order; the clock is for people.
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
from typing import Any, Self

from orchestrator import disk
from orchestrator.errors import Problem, ResumeError

SCHEMA = 1
MOST_LOST = 1000
"""So many lost turns are named at most: a record may speak of any turn."""


class Fact(StrEnum):
    """What a record says happened."""

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


@dataclass(frozen=True, kw_only=True, slots=True)
class Record:
    """Example: `Record(seq=7, attempt=1, step=2, fact=Fact.committed, details={}, time=1.7e9)`."""

    seq: int  # from 0, without gaps
    attempt: int
    step: int
    fact: Fact
    details: Mapping[str, Any]
    time: float  # Unix seconds, for people

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


class Ledger:
    """An open ledger. `records` is all it says; `torn_bytes` is what an interrupted append left behind.

    `fence` is called before anything is appended: it raises when the run is another driver's.
    """

    def __init__(self, path: Path, records: list[Record], torn_bytes: int, fence: Callable[[], None]) -> None:
        self.path, self.torn_bytes, self.fence = path, torn_bytes, fence
        self._records = records
        self._file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)

    @classmethod
    def open(cls, path: Path, fence: Callable[[], None] = lambda: None) -> Self:
        """Opens it for appending, new or old; half a record at its end is cut off.

        Raises:
            ResumeError: when a record that is not the last one is damaged.
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
        """Writes one record; when this returns it is on disk.

        Raises:
            OSError: it could not be written whole (a full disk); nothing of it counts.
            Superseded: the run is another driver's.
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
        disk.append(self._file, record.line())
        self._records.append(record)
        return record

    def last(self, fact: Fact) -> Record | None:
        return next((r for r in reversed(self._records) if r.fact == fact), None)

    def refuse_gaps(self, next_step: int) -> None:
        """A checkpoint says that `next_step` turns were trained; the records must know of each of them, once.

        Raises:
            ResumeError: they do not.
        """
        told = account(self._records)
        if told.trained == next_step and not told.lost and not told.repeated:
            return
        raise ResumeError(
            Problem(
                what=f"the ledger knows of {told.trained} trained steps, the checkpoint of {next_step}",
                where=str(self.path),
                why="records were removed from the file, or checkpoints of another run put beside it",
                fix="restore the run directory from a copy, or start the recipe anew under another name",
            )
        )

    def close(self) -> None:
        if self._file >= 0:
            os.close(self._file)
            self._file = -1


def read_ledger(path: Path) -> tuple[list[Record], int, int]:
    """(records, bytes they take, bytes of the file). Reading stops at half a record at the end. What a driver that had
    been superseded has appended between its look at the fence and its write is passed over.

    Raises:
        ResumeError: when whole records follow a damaged one: that is not an interrupted append.
    """
    raw = path.read_bytes() if path.exists() else b""
    records: list[Record] = []
    good_bytes = 0
    lines = raw.splitlines(keepends=True)
    for number, line in enumerate(lines, start=1):
        record = _parse(line, len(records))
        if record is None and _is_stray(line, records):
            good_bytes += len(line)
            continue
        if record is None:
            if any(_parse(later, None) for later in lines[number:]):
                raise ResumeError(
                    Problem(
                        what="a record is damaged, and whole ones follow it",
                        where=f"{path}:{number}",
                        why="the file was edited, or the disk lost a part of it",
                        fix="restore it from a copy, or start the recipe anew under another name",
                    )
                )
            break
        records.append(record)
        good_bytes += len(line)
    return records, good_bytes, len(raw)


@dataclass(frozen=True, kw_only=True, slots=True)
class Account:
    """Which turns the weights of a run have learned from, over all its attempts.

    An attempt goes on from a checkpoint: what was trained after that checkpoint is forgotten with the weights it made,
    and trained again. Example: turns 1, 2, 3, a kill, and 3, 4 from the checkpoint of 2: `trained=4`, `redone=1`.
    """

    trained: int  # turns that the final weights have learned from
    lost: tuple[int, ...]  # turns before the last one that they have not, the first MOST_LOST of them
    repeated: tuple[int, ...]  # turns that they have learned from more than once
    redone: int  # turns whose work was thrown away and done again


def account(records: Sequence[Record]) -> Account:
    """Arithmetic on the ledger alone."""
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
    """(turns, updates of the next one) that a checkpoint stands for of which the records say that it is complete, and
    from which the run has not gone back since; there may be newer ones. None: there is none to be expected."""
    known: tuple[int, int] | None = None
    for record in records:
        if record.fact == Fact.checkpoint:
            known = (record.step, record.details.get("updates", 0))
        elif record.fact == Fact.attempt:
            known = (record.step, 0) if record.step else None
        elif record.fact == Fact.alarm and record.details.get("action") == "roll_back":
            known = None
    return known


def _is_stray(line: bytes, records: Sequence[Record]) -> bool:
    """Whether it is a whole record of an attempt before the one that writes now."""
    record = _parse(line, None)
    return record is not None and bool(records) and record.attempt < records[-1].attempt


def _parse(line: bytes, seq: int | None) -> Record | None:
    """The record on a line; None when it is not whole, not itself, or (given `seq`) not the next one."""
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
