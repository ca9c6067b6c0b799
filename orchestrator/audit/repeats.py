"""Rows that repeat another one, exactly or nearly, of the same annotator and objective: others may judge again."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from orchestrator.audit.finding import Finding, Severity, paired, single
from orchestrator.audit.near import THRESHOLD, Near
from orchestrator.audit.reading import Columns


def find_repeats(columns: Columns, near: Near | None) -> Iterator[Finding]:
    """Report exact repeats, and near ones if they were looked for."""
    fix = "leave them out, or the repeated comparison counts several times: --write-clean"
    found = columns.numbers[columns.repeats()]
    if len(found):
        yield Finding(
            name="repeats",
            severity=Severity.warning,
            what="repeat an earlier row exactly",
            count=len(found),
            of=columns.num_rows,
            fix=fix,
            rows=paired(found[:, 0], found[:, 1]),
            dropped=found[:, 0],
            others=found[:, 1],
        )
    if near is not None and len(near.repeats):
        found = columns.numbers[near.repeats]
        yield Finding(
            name="near_repeats",
            severity=Severity.warning,
            what=f"nearly repeat an earlier row: at least {THRESHOLD:.0%} of each text's word 3-grams are the same",
            count=len(found),
            of=columns.num_rows,
            fix=fix,
            rows=paired(found[:, 0], found[:, 1]),
            dropped=found[:, 0],
            others=found[:, 1],
        )


def find_equal(columns: Columns) -> Iterator[Finding]:
    """Report pairs without a preference: chosen and rejected are equal."""
    if len(columns.equal):
        yield Finding(
            name="equal_pairs",
            severity=Severity.warning,
            what="have equal `chosen` and `rejected`, so there is no preference",
            count=len(columns.equal),
            of=columns.num_rows,
            fix="remove them (--write-clean), or let a run drop them: data.equal_pairs: drop",
            rows=single(columns.equal),
            dropped=columns.equal,
        )


def find_unusable(columns: Columns) -> Iterator[Finding]:
    """Report rows that no method can be trained on, a finding for each thing that is wrong."""
    for what, numbers in columns.unusable.items():
        rows = np.unique(numbers)
        yield Finding(
            name="unusable",
            severity=Severity.error,
            what=f"cannot be used: {what}",
            count=len(rows),
            of=columns.num_rows,
            fix="fix or remove them; --write-clean leaves them out",
            rows=single(rows),
            dropped=rows,
        )
