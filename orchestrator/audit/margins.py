"""Contrast of pairs, by the margins that rows carry: `margin`, ratings, ranks, or the scores of a reward model.

Without any of these the contrast is not measured here: it would take a reward model, or the policy's own
log-probabilities.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from orchestrator.audit.finding import Finding, Severity, single
from orchestrator.audit.reading import Columns

WEAK = 0.1  # of the median margin: pairs below have hardly any contrast
MANY = 0.1  # share of pairs with hardly any contrast from which on it is reported


@dataclass(frozen=True, kw_only=True, slots=True)
class Contrast:
    """Margins of the pairs that carry one. Example: `Contrast(count=900, quartiles=(0.5, 1.0, 2.0))`."""

    count: int
    quartiles: tuple[float, float, float]


def contrast_of(columns: Columns) -> Contrast | None:
    """Return the contrast; None: no row carries a margin."""
    margins = columns.margins[np.isfinite(columns.margins)]
    if not len(margins):
        return None
    low, median, high = (float(value) for value in np.quantile(margins, (0.25, 0.5, 0.75)))
    return Contrast(count=len(margins), quartiles=(low, median, high))


def find_weak_contrast(columns: Columns) -> Iterator[Finding]:
    """Report pairs whose rejected completion has the higher score, and many pairs of hardly any contrast."""
    has_margin = np.isfinite(columns.margins) & columns.is_pair
    reversed_ = columns.numbers[has_margin & (columns.margins < 0)]
    if len(reversed_):
        yield Finding(
            name="reversed_scores",
            severity=Severity.warning,
            what="prefer the completion with the lower score of their own scores",
            count=len(reversed_),
            of=columns.num_rows,
            fix="look at them: either the label or the score is wrong; --write-clean leaves them out",
            rows=single(reversed_),
            dropped=reversed_,
        )
    positive = columns.margins[has_margin & (columns.margins >= 0)]
    median = float(np.median(positive)) if len(positive) else 0.0
    weak = columns.numbers[has_margin & (columns.margins >= 0) & (columns.margins < WEAK * median)]
    if len(weak) and len(weak) >= MANY * has_margin.sum():
        yield Finding(
            name="weak_contrast",
            severity=Severity.warning,
            what=f"have a margin below {WEAK:.0%} of the median ({median:.3g}): hardly any contrast",
            count=len(weak),
            of=columns.num_rows,
            fix="leave them out, or weigh pairs by their margin: algorithm.margin_weight, soft_labels",
            rows=single(weak),
        )
