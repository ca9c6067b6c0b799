"""Rows that are too long: those that the model's own positions cut, and those that data.max_length cuts."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from orchestrator.audit.finding import Finding, Severity, single
from orchestrator.audit.reading import Columns, Limits


def find_cuts(columns: Columns, limits: Limits | None) -> Iterator[Finding]:
    """Report rows that lose the end of a completion, or are dropped for their prompt, by what limits them."""
    if limits is None or columns.cut is None:
        return
    positions = limits.tokens.max_positions
    for numbers, what, fix in (
        (
            columns.cut.by_model,
            f"are longer than the model's {positions} positions: no setting keeps them whole",
            "shorten or remove them, or take a model with more positions",
        ),
        (
            columns.cut.by_setting,
            f"are longer than data.max_length = {limits.max_length}, but not than the model's positions",
            "raise data.max_length, or shorten them",
        ),
    ):
        if numbers:
            rows = np.array(numbers, np.int64)
            yield Finding(
                name="cut_by_model" if numbers is columns.cut.by_model else "cut_by_setting",
                severity=Severity.warning,
                what=what,
                count=len(rows),
                of=columns.num_rows,
                fix=fix,
                rows=single(rows),
            )
