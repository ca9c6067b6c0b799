"""Write an audit as a page, with the text of the rows to look at: self-contained HTML, or Markdown."""

from __future__ import annotations

from dataclasses import dataclass

from orchestrator.audit.audit import Audit, read_again
from orchestrator.audit.finding import Finding
from orchestrator.audit.reading import plain
from orchestrator.audit.show import measured, summary
from orchestrator.report.page import Report, render


@dataclass(frozen=True, kw_only=True, slots=True)
class ShownRow:
    """A row on the page, with the names and texts of its parts. `texts` is empty for a row that cannot be used."""

    number: int
    texts: tuple[tuple[str, str], ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class Section:
    """A finding on the page, with groups of rows: each row beside the one that it repeats or contradicts."""

    finding: Finding
    groups: tuple[tuple[ShownRow, ...], ...]


def page(audit: Audit, split: str) -> Report:
    """Build the page. The rows that it shows are read again."""
    numbers = frozenset(number for finding in audit.findings for rows in finding.rows for number in rows)
    examples = read_again(audit.source, audit.format, numbers, split) if numbers else {}

    def shown(number: int) -> ShownRow:
        if (example := examples.get(number)) is None:
            return ShownRow(number=number, texts=())
        names = ["chosen", "rejected"] if len(example.completions) == 2 else ["completion"] * len(example.completions)
        texts = [("prompt", plain(example.prompt.text)), *zip(names, map(plain, example.completions), strict=True)]
        return ShownRow(number=number, texts=tuple(texts))

    def groups(finding: Finding) -> tuple[tuple[ShownRow, ...], ...]:
        own = 1 if finding.name == "overlap" else None  # the second number is of the evaluation file
        return tuple(tuple(shown(number) for number in rows[:own]) for rows in finding.rows)

    values = {
        "title": f"Audit of {audit.source}",
        "audit": audit,
        "summary": summary(audit),
        "sections": [Section(finding=finding, groups=groups(finding)) for finding in audit.findings],
        "measured": list(measured(audit)),
    }
    return render("audit", values)
