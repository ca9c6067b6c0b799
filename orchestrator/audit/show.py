"""Print an audit as text or JSON."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator
from typing import Any

from orchestrator.audit.audit import Audit
from orchestrator.audit.finding import Finding, percent
from orchestrator.evaluation.statistics import Interval
from orchestrator.terminal import say

WIDTH = 100  # columns
SCHEMA = 1


def show(audit: Audit) -> None:
    """Print the audit for people."""
    say(f"{audit.source}: {audit.num_rows:,} rows of {audit.format} data, {audit.num_pairs:,} pairs; {summary(audit)}")
    for finding in audit.findings:
        _say(finding.sentence, f"\n{finding.severity}: ")
        if finding.rows:
            _say(rows_text(finding), "  rows: ")
        _say(finding.fix, "  fix:  ")
    for heading, lines in (("Measured", list(measured(audit))), ("Not looked for", list(audit.left_out))):
        if lines:
            say(f"\n{heading}")
            for line in lines:
                _say(line, "  - ")


def summary(audit: Audit) -> str:
    """Return the number of findings of each severity: "1 error, 2 warnings"."""
    counts: dict[str, int] = {}
    for finding in audit.findings:
        counts[finding.severity] = counts.get(finding.severity, 0) + 1
    listed = [f"{count} {severity}{'s' * (count > 1)}" for severity, count in counts.items()]
    return ", ".join(listed) or "nothing found"


def rows_text(finding: Finding) -> str:
    """Return the rows to look at: "7 and 3, 9 and 3"."""
    return ", ".join(" and ".join(map(str, rows)) for rows in finding.rows)


def measured(audit: Audit) -> Iterator[str]:
    """Yield what was measured, one line each, whether or not it is a finding."""
    if audit.lengths is not None:
        lengths, model = audit.lengths, audit.lengths.model
        line = (
            f"length: chosen minus rejected {lengths.gap:+,.0f} bytes in the mean, ratio {lengths.ratio:.2f} in the "
            f"median; chosen is longer in {_percent(lengths.longer)} of the pairs"
        )
        if model is not None:
            explained = percent(max(0.0, model.explained))
            line += f"; length alone predicts {percent(model.accuracy)} of held-out pairs (McFadden's R² {explained})"
        yield line
    if audit.agreement is not None:
        agreed = audit.agreement
        alpha = "" if agreed.alpha is None else f"; Krippendorff's α {_decimals(agreed.alpha)}"
        yield (
            f"agreement: {_percent(agreed.percent)} of the pairs of {agreed.judgements:,} judgements on "
            f"{agreed.comparisons:,} comparisons{alpha}"
        )
    if audit.contrast is not None:
        low, median, high = audit.contrast.quartiles
        yield f"contrast: margins of {audit.contrast.count:,} rows, quartiles {low:.3g}, {median:.3g}, {high:.3g}"
    if audit.accuracy is not None:
        yield f"a model on words predicts {audit.accuracy:.0%} of held-out labels"
    yield f"{audit.seconds:.1f} s"


def _say(text: str, label: str) -> None:
    """Print `text` behind `label`, wrapped with a hanging indent."""
    bare = label.lstrip("\n")
    lines = textwrap.wrap(text, WIDTH - len(bare), break_long_words=False, break_on_hyphens=False)
    say("\n".join((" " * len(bare) if i else label) + line for i, line in enumerate(lines)))


def _percent(interval: Interval) -> str:
    return f"{interval.value:.0%} [{interval.low:.0%}, {interval.high:.0%}]"


def _decimals(interval: Interval) -> str:
    return f"{interval.value:.2f} [{interval.low:.2f}, {interval.high:.2f}]"


def as_json(audit: Audit) -> dict[str, Any]:
    """Return the audit as JSON values."""
    lengths, agreed, contrast = audit.lengths, audit.agreement, audit.contrast
    return {
        "v": SCHEMA,
        "source": audit.source,
        "format": str(audit.format),
        "rows": audit.num_rows,
        "pairs": audit.num_pairs,
        "findings": [
            {
                "name": finding.name,
                "severity": str(finding.severity),
                "sentence": finding.sentence,
                "count": finding.count,
                "share": finding.share,
                "rows": [list(rows) for rows in finding.rows],
                "fix": finding.fix,
                "dropped": len(finding.dropped),
            }
            for finding in audit.findings
        ],
        "length": None
        if lengths is None
        else {
            "gap_bytes": lengths.gap,
            "ratio": lengths.ratio,
            "longer_chosen": _interval(lengths.longer),
            "accuracy": None if lengths.model is None else lengths.model.accuracy,
            "explained": None if lengths.model is None else lengths.model.explained,
        },
        "agreement": None
        if agreed is None
        else {
            "comparisons": agreed.comparisons,
            "judgements": agreed.judgements,
            "percent": _interval(agreed.percent),
            "alpha": None if agreed.alpha is None else _interval(agreed.alpha),
        },
        "contrast": None if contrast is None else {"count": contrast.count, "quartiles": list(contrast.quartiles)},
        "accuracy": audit.accuracy,
        "left_out": list(audit.left_out),
        "seconds": round(audit.seconds, 3),
    }


def _interval(interval: Interval) -> list[float]:
    """Return [value, low, high] of a 95 % interval."""
    return [interval.value, interval.low, interval.high]
