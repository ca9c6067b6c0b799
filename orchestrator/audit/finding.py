"""A finding about a dataset, and the rows that a clean copy leaves out."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from enum import StrEnum
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

Numbers: TypeAlias = NDArray[np.int64]
SHOWN = 8  # rows to look at, of each finding


class Severity(StrEnum):
    note = "note"  # to know; nothing has to be done
    warning = "warning"  # a run would learn something that was not meant
    error = "error"  # a run refuses these rows


@dataclass(frozen=True, kw_only=True, slots=True)
class Finding:
    """A finding about the rows of a dataset. Rows are given by their numbers in the file, from 1.

    Example: `Finding(name="repeats", severity=Severity.warning, what="rows repeat an earlier one", count=2, of=100,
    rows=((7, 3), (9, 3)), fix="…", dropped=[7, 9], others=[3, 3])`.
    """

    name: str
    severity: Severity
    what: str  # end of the sentence that begins with "2 of 100 rows", or the whole sentence where `of` is None
    count: int
    of: int | None  # None: the sentence has its own figures
    fix: str
    rows: tuple[tuple[int, ...], ...] = ()  # rows to look at, each with the row it repeats or contradicts
    dropped: Numbers = field(default_factory=lambda: np.zeros(0, np.int64))  # rows that a clean copy leaves out
    others: Numbers | None = None  # row that each of them repeats or contradicts; None: no other row is concerned

    @property
    def share(self) -> float | None:
        return None if not self.of else self.count / self.of

    @property
    def sentence(self) -> str:
        if self.of is None:
            return self.what
        return f"{self.count:,} of {self.of:,} rows ({percent(self.count / max(1, self.of))}) {self.what}"

    def reasons(self) -> Iterator[tuple[int, str, int | None]]:
        """Yield each row that a clean copy leaves out, the reason, and the row that it repeats or contradicts."""
        others = [None] * len(self.dropped) if self.others is None else self.others.tolist()
        for row, other in zip(self.dropped.tolist(), others, strict=True):
            yield row, self.name, other


def percent(share: float) -> str:
    """Format a share with two significant digits: "0.53 %"."""
    return f"{100 * share:.2g} %" if share < 0.995 else f"{100 * share:.0f} %"


def paired(dropped: Numbers, others: Numbers) -> tuple[tuple[int, ...], ...]:
    """Return the rows to look at of a finding about pairs of rows."""
    return tuple((int(row), int(other)) for row, other in zip(dropped[:SHOWN], others[:SHOWN], strict=True))


def single(rows: Numbers) -> tuple[tuple[int, ...], ...]:
    """Return the rows to look at of a finding about single rows."""
    return tuple((int(row),) for row in rows[:SHOWN])
