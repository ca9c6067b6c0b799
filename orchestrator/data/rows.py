"""Row of data, and the problems of rows, reported once per kind with the lines on which they occur."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

from orchestrator.errors import BadInput, Problem

MAX_KINDS = 20  # different problems after which reading stops
SHOWN = 8  # row numbers listed per problem


class Row(NamedTuple):
    """Row of a data source. Example: `Row(number=17, values={"prompt": "2+2=", "solution": "4"})`."""

    number: int  # from 1; the line of a text file
    values: Mapping[str, Any]


@dataclass(frozen=True, kw_only=True, slots=True)
class _Kind:
    what: str
    why: str
    fix: str


class RowProblems:
    """Problems of the rows of one source. The same problem on many lines is one problem."""

    def __init__(self, source: str) -> None:
        self.source = source
        self._rows: dict[_Kind, list[int]] = {}
        self._counts: dict[_Kind, int] = {}

    def add(self, row: int, what: str, *, why: str = "", fix: str = "") -> None:
        kind = _Kind(what=what, why=why, fix=fix)
        if kind not in self._rows and len(self._rows) == MAX_KINDS:
            raise BadInput([*self.problems(), Problem(what="and more", where=self.source, fix="fix these first")])
        rows = self._rows.setdefault(kind, [])
        self._counts[kind] = self._counts.get(kind, 0) + 1
        if len(rows) < SHOWN:
            rows.append(row)

    def stop(self, what: str, *, row: int | None = None, why: str = "", fix: str = "") -> BadInput:
        """Return the error to raise for a problem that makes the whole source unreadable."""
        where = self.source if row is None else f"{self.source}:{row}"
        return BadInput([*self.problems(), Problem(what=what, where=where, why=why, fix=fix)])

    def problems(self) -> list[Problem]:
        return [
            Problem(
                what=kind.what + self._elsewhere(kind),
                where=f"{self.source}:{rows[0]}",
                why=kind.why,
                fix=kind.fix,
            )
            for kind, rows in self._rows.items()
        ]

    def _elsewhere(self, kind: _Kind, *, always: bool = False) -> str:
        rows, count = self._rows[kind], self._counts[kind]
        if count == 1:
            return f" (row {rows[0]})" if always else ""
        more = f" and {count - len(rows)} more" if count > len(rows) else ""
        return f" ({count} rows: {', '.join(str(row) for row in rows)}{more})"

    def remarks(self) -> list[str]:
        """Return the problems as remarks, one line each."""
        return [kind.what + self._elsewhere(kind, always=True) for kind in self._rows]

    def raise_if_any(self) -> None:
        if self._rows:
            raise BadInput(self.problems())


def kind_of(value: object) -> str:
    """Return the JSON type of a value in words."""
    for kind, word in (
        (bool, "a boolean"),
        (int, "a number"),
        (float, "a number"),
        (str, "text"),
        (list, "a list"),
    ):
        if isinstance(value, kind):
            return word
    return "null" if value is None else "an object"
