"""Audits of rows in memory or in a file, for the tests."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from orchestrator.audit.audit import Audit, audit
from orchestrator.audit.finding import Finding, Severity
from orchestrator.audit.reading import Columns, read
from orchestrator.data.detection import format_of


def write(path: Path, rows: Sequence[Any]) -> str:
    """Write rows as JSON lines; a string is written as it is."""
    lines = (row if isinstance(row, str) else json.dumps(row, ensure_ascii=False) for row in rows)
    path.write_text("".join(f"{line}\n" for line in lines), "utf-8")
    return str(path)


def audited(path: Path, rows: Sequence[Any], **options: Any) -> Audit:
    return audit(write(path, rows), **options)


def columns_of(path: Path, rows: Sequence[Any]) -> Columns:
    source = write(path, rows)
    return read(source, format_of(source))


def warnings(found: Audit) -> list[str]:
    """Return the names of warnings and errors."""
    return [finding.name for finding in found.findings if finding.severity != Severity.note]


def finding(found: Audit, name: str) -> Finding:
    return next(f for f in found.findings if f.name == name)


def pair(prompt: str, chosen: str, rejected: str, **columns: Any) -> dict[str, Any]:
    return {"prompt": prompt, "chosen": chosen, "rejected": rejected, **columns}
