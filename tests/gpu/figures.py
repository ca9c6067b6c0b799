"""Figures that a check has measured, each beside the expected one: JSON lines, and the table of `make gpu-check`.

python tests/gpu/figures.py gpu-check.jsonl
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

NEAR = 1.3  # factor within which a figure without limits counts as the planned one


@dataclass(frozen=True, kw_only=True, slots=True)
class Figure:
    """A measured figure and the expected one.

    Example: `Figure(name="learner 1.5B: peak memory", measured=28.1, expected=30.2, unit="GB", at_most=33.2)`.
    """

    name: str
    measured: float
    unit: str
    expected: float | None = None  # by the planner or by arithmetic; None: nothing predicts it
    at_most: float | None = None  # limit above which the check fails; None: no limit
    at_least: float | None = None  # limit below which the check fails; None: no limit

    @property
    def fails(self) -> bool:
        """Tell whether the figure is outside of its limits. NaN is outside of any limit."""
        above = self.at_most is not None and not self.measured <= self.at_most
        below = self.at_least is not None and not self.measured >= self.at_least
        return above or below or self.measured != self.measured

    @property
    def verdict(self) -> str:
        if self.fails:
            return "FAILS"
        if self.at_most is not None or self.at_least is not None:
            return "within its limit"
        if not self.expected:
            return ""
        ratio = self.measured / self.expected
        return "as expected" if 1 / NEAR <= ratio <= NEAR else f"{ratio:.2f} x the expected"


def append(file: Path, check: str, figures: Iterable[Figure]) -> None:
    """Append the figures of a check to a file, one JSON object a line."""
    with file.open("a", encoding="utf-8") as lines:
        lines.writelines(json.dumps({"check": check, **asdict(figure)}) + "\n" for figure in figures)


def read(file: Path) -> list[Figure]:
    """Read the figures of all checks."""
    rows = [json.loads(line) for line in file.read_text("utf-8").splitlines()]
    return [Figure(**{key: value for key, value in row.items() if key != "check"}) for row in rows]


def table(figures: Sequence[Figure]) -> str:
    """Return the figures as a table of text."""
    head = ("figure", "measured", "expected", "limit", "")
    rows = [
        head,
        *((f.name, _value(f.measured, f.unit), _value(f.expected, f.unit), _limit(f), f.verdict) for f in figures),
    ]
    widths = [max(len(row[i]) for row in rows) for i in range(len(head))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows
    )


def _value(number: float | None, unit: str) -> str:
    return "-" if number is None else f"{number:,.4g} {unit}".rstrip()


def _limit(figure: Figure) -> str:
    limits = (("<=", figure.at_most), (">=", figure.at_least))
    return " ".join(f"{sign} {limit:,.4g}" for sign, limit in limits if limit is not None)


if __name__ == "__main__":
    print(table(read(Path(sys.argv[1]))) if Path(sys.argv[1]).is_file() else "gpu-check: nothing was measured")
