"""Clean copies: what is dropped and why, in every format, and that a second audit finds nothing."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import pyarrow.parquet as parquet
import pytest
from audited import audited, pair, warnings, write
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from benchmarks.planted_preferences import World, reworded, swap
from orchestrator.audit.audit import audit
from orchestrator.audit.clean import check_target, write_clean
from orchestrator.errors import BadInput

ROWS = [dict(row, annotator="a", source="s") for row in World(seed=2, completion_words=(30, 60)).rows(20)]
FAULTY: list[Any] = [
    *ROWS,
    ROWS[0],  # 21 repeats 1
    swap(ROWS[1]),  # 22 contradicts 2
    reworded(ROWS[2], np.random.default_rng(0)),  # 23 nearly repeats 3
    {**ROWS[3], "rejected": ROWS[3]["chosen"]},  # 24 is equal
    {**ROWS[4], "chosen": 5},  # 25 cannot be used
]
REASONS = [
    {"row": 2, "reason": "contradictions", "of": 22},
    {"row": 21, "reason": "repeats", "of": 1},
    {"row": 22, "reason": "contradictions", "of": 2},
    {"row": 23, "reason": "near_repeats", "of": 3},
    {"row": 24, "reason": "equal_pairs"},
    {"row": 25, "reason": "unusable"},
]


def reasons(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_a_clean_copy_has_the_other_lines_as_they_were(tmp_path: Path) -> None:
    written = [json.dumps(row, indent=None, separators=(" , ", ":")) for row in FAULTY]
    source = write(tmp_path / "p.jsonl", ["", *written])  # a blank line is no row, but counts as a line
    found = audit(source)
    clean = write_clean(source, "train", found.findings, tmp_path / "clean.jsonl")
    assert (clean.kept, clean.left_out) == (19, 6)
    assert reasons(clean.dropped) == [
        {key: value + 1 if isinstance(value, int) else value for key, value in reason.items()} for reason in REASONS
    ]
    kept = [line for i, line in enumerate(written, start=1) if i not in {reason["row"] for reason in REASONS}]
    assert clean.path.read_text().splitlines() == kept
    assert warnings(audit(str(clean.path))) == []


def test_a_parquet_file_keeps_its_schema(tmp_path: Path) -> None:
    source, target = tmp_path / "p.parquet", tmp_path / "clean.parquet"
    parquet.write_table(pyarrow.Table.from_pylist(FAULTY[:24]), source)
    clean = write_clean(str(source), "train", audit(str(source)).findings, target)
    assert reasons(clean.dropped) == REASONS[:5]
    assert parquet.read_schema(target) == parquet.read_schema(source)
    assert parquet.read_table(target).to_pylist() == [row for i, row in enumerate(ROWS) if i != 1]


def test_a_folder_of_datasets_becomes_one(tmp_path: Path) -> None:
    import datasets

    source, target = tmp_path / "data", tmp_path / "clean"
    datasets.Dataset.from_list(FAULTY[:24]).save_to_disk(str(source))
    clean = write_clean(str(source), "train", audit(str(source)).findings, target)
    assert (clean.kept, reasons(clean.dropped)) == (19, REASONS[:5])
    assert warnings(audit(str(target))) == []


def test_what_cannot_be_written_is_refused_before_the_audit(tmp_path: Path) -> None:
    source = write(tmp_path / "p.jsonl", ROWS)
    for target, why in (
        (tmp_path / "p.jsonl", "nothing is overwritten"),
        (tmp_path / "missing" / "c.jsonl", "there is no directory"),
        (tmp_path / "c.parquet", "the copy has the format of the data"),
    ):
        with pytest.raises(BadInput, match=why):
            check_target(source, target)
    with pytest.raises(BadInput, match="so is the copy"):
        check_target(str(tmp_path), tmp_path / "c.jsonl")


TEXTS = st.sampled_from(
    ["a", "b", "c", " a", "The quick brown fox jumps over the lazy dog", "the QUICK brown fox jumps, over the lazy dog"]
)
FEW_ROWS = st.lists(
    st.builds(
        pair,
        st.sampled_from(["p", "q", "P!"]),
        TEXTS,
        TEXTS,
        annotator=st.sampled_from(["x", "y"]),
    ),
    min_size=1,
    max_size=12,
)


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(FEW_ROWS)
def test_a_clean_copy_has_no_faults_that_can_be_left_out(tmp_path: Path, rows: list[dict[str, Any]]) -> None:
    folder = Path(tempfile.mkdtemp(dir=tmp_path))
    found = audited(folder / "p.jsonl", rows)
    clean = write_clean(str(folder / "p.jsonl"), "train", found.findings, folder / "clean.jsonl")
    if clean.kept:
        left = audit(str(clean.path))
        assert [f.name for f in left.findings if len(f.dropped)] == []
    assert clean.kept + clean.left_out == len(rows)
