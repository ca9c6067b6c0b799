"""Ledger: appended records are read back, an incomplete one at the end is ignored, other damage is an error."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from orchestrator.errors import ResumeError
from orchestrator.rundir.ledger import Fact, Ledger, Record, checkpointed, read_ledger


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "ledger.jsonl"


def write(path: Path, steps: int) -> tuple[Record, ...]:
    with Ledger.open(path) as ledger:
        ledger.append(Fact.attempt, attempt=1, step=0)
        for step in range(1, steps + 1):
            for fact in (Fact.planned, Fact.generated, Fact.scored, Fact.trained, Fact.published, Fact.committed):
                ledger.append(fact, attempt=1, step=step, version=step)
        return ledger.records


def test_what_is_appended_is_read_back(path: Path) -> None:
    written = write(path, steps=2)
    assert [record.seq for record in written] == list(range(13))
    with Ledger.open(path) as ledger:
        assert (ledger.records, ledger.torn_bytes) == (written, 0)
        last = ledger.last(Fact.committed)
        assert last is not None
        assert (last.step, last.details) == (2, {"version": 2})
        assert ledger.last(Fact.finished) is None


def test_a_record_is_one_line_with_its_schema_and_checksum(path: Path) -> None:
    write(path, steps=0)
    (line,) = path.read_text().splitlines()
    body = json.loads(line)
    assert {**body, "time": 0, "sha256": ""} == {
        "v": 1, "seq": 0, "attempt": 1, "step": 0, "fact": "ATTEMPT", "details": {}, "time": 0, "sha256": "",
    }  # fmt: skip
    assert len(body["sha256"]) == 64


def test_a_tail_torn_at_any_byte_is_cut_off_and_written_over(path: Path) -> None:
    written = write(path, steps=1)
    content = path.read_bytes()
    last = len(content.splitlines(keepends=True)[-1])
    for left in range(last):
        path.write_bytes(content[: len(content) - last + left])
        with Ledger.open(path) as ledger:
            assert ledger.records == written[:-1]
            assert ledger.torn_bytes == left
            ledger.append(Fact.committed, attempt=2, step=1)
        records, good_bytes, size = read_ledger(path)
        assert (len(records), good_bytes) == (len(written), size)
        assert records[-1].attempt == 2


def test_damage_before_whole_records_is_an_error_that_names_the_line(path: Path) -> None:
    write(path, steps=1)
    lines = path.read_bytes().splitlines(keepends=True)
    for number in range(1, len(lines)):
        damaged = lines[number - 1].replace(b'"attempt": 1', b'"attempt": 2')
        path.write_bytes(b"".join([*lines[: number - 1], damaged, *lines[number:]]))
        with pytest.raises(ResumeError, match=rf"ledger\.jsonl:{number}: a record is damaged"):
            Ledger.open(path)


def test_a_record_that_is_missing_or_doubled_is_damage(path: Path) -> None:
    write(path, steps=1)
    lines = path.read_bytes().splitlines(keepends=True)
    for wrong in ([*lines[:2], *lines[3:]], [*lines[:2], lines[1], *lines[2:]]):
        path.write_bytes(b"".join(wrong))
        with pytest.raises(ResumeError):
            read_ledger(path)


def test_a_full_disk_leaves_no_partial_record(path: Path) -> None:
    """Simulate a full disk with RLIMIT_FSIZE: a write beyond it is short, and the next one fails."""
    import resource
    import signal

    written = write(path, steps=1)
    size = path.stat().st_size
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    ignored = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        with Ledger.open(path) as ledger:
            resource.setrlimit(resource.RLIMIT_FSIZE, (size + 20, before[1]))
            with pytest.raises(OSError, match="File too large"):
                ledger.append(Fact.planned, attempt=1, step=2)
            assert ledger.records == written
            resource.setrlimit(resource.RLIMIT_FSIZE, before)
            ledger.append(Fact.planned, attempt=1, step=2)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, ignored)
    assert len(read_ledger(path)[0]) == len(written) + 1


def test_values_that_json_cannot_represent_are_refused(path: Path) -> None:
    with Ledger.open(path) as ledger:
        with pytest.raises(ValueError, match="not JSON compliant"):
            ledger.append(Fact.trained, attempt=1, step=1, loss=float("nan"))
        assert os.path.getsize(path) == 0


BEGUN, SAVED, WITHIN = (Fact.attempt, 0, {}), (Fact.checkpoint, 3, {}), (Fact.checkpoint, 3, {"updates": 2})


@pytest.mark.parametrize(
    ("facts", "expected"),
    [
        ([BEGUN], None),
        ([BEGUN, SAVED], (3, 0)),
        ([BEGUN, SAVED, WITHIN], (3, 2)),
        ([BEGUN, SAVED, (Fact.attempt, 2, {})], (2, 0)),  # the newest was damaged: the one before was used
        ([BEGUN, SAVED, (Fact.alarm, 4, {"action": "pause"})], (3, 0)),
        ([BEGUN, SAVED, (Fact.alarm, 4, {"action": "roll_back"})], None),  # it may have been deleted
    ],
)
def test_the_checkpoint_that_the_ledger_requires(
    path: Path, facts: list[tuple[Fact, int, dict[str, Any]]], expected: tuple[int, int] | None
) -> None:
    with Ledger.open(path) as ledger:
        for fact, step, details in facts:
            ledger.append(fact, attempt=1, step=step, **details)
        assert checkpointed(ledger.records) == expected


def test_a_late_record_of_a_superseded_driver_does_not_count(path: Path) -> None:
    """Append a record of the old driver after the next attempt has started, as if it had checked the fence before."""
    with Ledger.open(path) as old:
        old.append(Fact.attempt, attempt=1, step=0)
        with Ledger.open(path) as new:
            new.append(Fact.attempt, attempt=2, step=0)
            old.append(Fact.planned, attempt=1, step=1)
            new.append(Fact.planned, attempt=2, step=1)
    records, good_bytes, size = read_ledger(path)
    assert [(r.seq, r.attempt, r.fact) for r in records] == [
        (0, 1, Fact.attempt),
        (1, 2, Fact.attempt),
        (2, 2, Fact.planned),
    ]
    assert good_bytes == size
