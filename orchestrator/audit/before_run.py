"""The audit before a run on preferences: warnings for the log, in bounded time.

What needs no words of the texts is always looked at: length, agreement, contrast, conflicts between objectives. Near
repeats, near contradictions and poison are looked for in at most HEAVY_ROWS rows, which takes seconds. Exact repeats,
exact contradictions and held-out prompts are remarks of `orchestrator.preflight.data_files` already.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import closing

from orchestrator.audit.audit import Scope, examine
from orchestrator.audit.finding import Finding, Severity
from orchestrator.audit.reading import of_examples
from orchestrator.audit.show import rows_text
from orchestrator.config.run import RunConfig
from orchestrator.preflight.source import Source

HEAVY_ROWS = 20_000
REPORTED_ELSEWHERE = ("repeats", "contradictions", "equal_pairs", "unusable")


def audit_remarks(config: RunConfig, sources: Mapping[str, Source]) -> list[str]:
    """Return the warnings of the audit about the dataset of a run, one line each; none for a run on other data."""
    dataset = sources.get("dataset")
    if dataset is None or config.algorithm.needs.dataset != "pairs":
        return []
    if dataset.facts is not None:  # looked for when its rows were written
        return list(dataset.facts.audit)
    is_small = len(dataset.rows) <= HEAVY_ROWS
    left_out = (
        f"near repeats and poison were not looked for in {len(dataset.rows):,} rows, more than {HEAVY_ROWS:,}: "
        f"rlhf audit {dataset.source}"
    )
    columns = of_examples(dataset.source, dataset.rows, with_words=is_small)
    with closing(columns.words):
        scope = Scope(heavy=is_small, why_not=left_out)
        found = examine(columns, scope=scope, examples=tuple(dataset.rows))
    lines = [_line(f) for f in found.findings if f.severity != Severity.note and f.name not in REPORTED_ELSEWHERE]
    lines += [left_out] if not is_small else []
    return [f"{dataset.key}: audit: {line}" for line in lines]


def _line(finding: Finding) -> str:
    rows = f" (rows {rows_text(finding)})" if finding.rows else ""
    return f"{finding.sentence}{rows}; {finding.fix}"
