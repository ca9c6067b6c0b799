"""A copy of a dataset without the rows that findings leave out, in the same format, and a list of these rows.

`OUT.dropped.jsonl` has a line for each of them: {"row": 17, "reason": "repeats", "of": 3}. A row with several reasons
stands there once, with the first one.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from orchestrator.audit.finding import Finding
from orchestrator.data.rows import RowProblems
from orchestrator.data.sources import is_hub_name, load_table, local
from orchestrator.errors import BadInput, Problem

ROWS = 10_000  # of a parquet file that are written at a time


@dataclass(frozen=True, kw_only=True, slots=True)
class Clean:
    """A clean copy. Example: `Clean(path=Path("clean.jsonl"), dropped=Path("clean.jsonl.dropped.jsonl"), kept=90,
    left_out=10)`."""

    path: Path
    dropped: Path
    kept: int
    left_out: int


def check_target(source: str, target: Path) -> None:
    """Raise BadInput if a clean copy of `source` cannot be written to `target`."""
    kind = ".parquet" if local(source).suffix == ".parquet" else ".jsonl"
    is_table = is_hub_name(source) or local(source).is_dir()
    why = fix = ""
    if target.exists():
        why, fix = "it exists already, and nothing is overwritten", "give another name, or remove it"
    elif not target.absolute().parent.is_dir():
        why, fix = f"there is no directory {target.parent}", f"mkdir {target.parent}"
    elif is_table and target.suffix:
        why, fix = "the data are a `datasets` folder, and so is the copy", "give the name of a directory"
    elif not is_table and target.suffix != kind:
        why, fix = "the copy has the format of the data", f"give a name that ends in {kind}"
    if why:
        raise BadInput(Problem(what=f"--write-clean {target}", where="command line", why=why, fix=fix))


def write_clean(source: str, split: str, findings: Sequence[Finding], target: Path) -> Clean:
    """Write the copy and the list of dropped rows. A copy that could not be finished is removed."""
    reasons: dict[int, tuple[str, int | None]] = {}
    for finding in findings:
        for row, reason, other in finding.reasons():
            reasons.setdefault(row, (reason, other))
    listed = target.with_name(target.name + ".dropped.jsonl")
    writer = _writer(source)
    try:
        kept = writer(source, split, reasons.__contains__, target)
        with open(listed, "w", encoding="utf-8") as file:
            for row in sorted(reasons):
                reason, other = reasons[row]
                line = {"row": row, "reason": reason} | ({} if other is None else {"of": other})
                file.write(json.dumps(line) + "\n")
    except BaseException:
        shutil.rmtree(target, ignore_errors=True)
        for path in (target, listed):
            path.unlink(missing_ok=True)
        raise
    return Clean(path=target, dropped=listed, kept=kept, left_out=len(reasons))


Dropped = Callable[[int], bool]


def _writer(source: str) -> Callable[[str, str, Dropped, Path], int]:
    if is_hub_name(source) or local(source).is_dir():
        return _copy_table
    return _copy_parquet if local(source).suffix == ".parquet" else _copy_lines


def _copy_lines(source: str, split: str, is_dropped: Dropped, target: Path) -> int:
    """Copy lines byte by byte: a row keeps the form in which it was written."""
    kept = 0
    with open(local(source), "rb") as rows, open(target, "wb") as out:
        for number, line in enumerate(rows, start=1):
            if line.strip() and not is_dropped(number):
                out.write(line if line.endswith(b"\n") else line + b"\n")
                kept += 1
    return kept


def _copy_parquet(source: str, split: str, is_dropped: Dropped, target: Path) -> int:
    import pyarrow.parquet as parquet

    file = parquet.ParquetFile(local(source))
    number = kept = 0
    with parquet.ParquetWriter(target, file.schema_arrow) as out:
        for batch in file.iter_batches(batch_size=ROWS):
            stays = [not is_dropped(number + i) for i in range(1, batch.num_rows + 1)]
            number, kept = number + batch.num_rows, kept + sum(stays)
            out.write_batch(batch.filter(_mask(stays)))
    return kept


def _mask(stays: list[bool]) -> Any:
    import pyarrow

    return pyarrow.array(stays)


def _copy_table(source: str, split: str, is_dropped: Dropped, target: Path) -> int:
    table = load_table(source if is_hub_name(source) else str(local(source)), split, RowProblems(source))
    kept = [i for i in range(len(table)) if not is_dropped(i + 1)]
    table.select(kept).save_to_disk(str(target))
    return len(kept)
