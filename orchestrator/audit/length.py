"""Length of chosen and rejected completions, and how many preferences follow from length alone."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from orchestrator.audit.finding import Finding, Severity, percent, single
from orchestrator.audit.reading import Columns
from orchestrator.audit.small_model import LengthModel, length_model
from orchestrator.evaluation.statistics import Interval, wilson

LONGER_CHOSEN = 0.6  # our choice: share of pairs in which length alone predicts the chosen completion
MIN_PAIRS = 100  # fewer say nothing about a rule of length


@dataclass(frozen=True, kw_only=True, slots=True)
class Lengths:
    """Lengths in bytes. Example: `Lengths(gap=120.0, ratio=1.3, longer=Interval(…), model=LengthModel(…))`."""

    gap: float  # mean of chosen minus rejected
    ratio: float  # median of chosen / rejected
    longer: Interval  # share of pairs whose chosen completion is longer; a tie counts one half
    model: LengthModel | None  # None: too few pairs, or scikit-learn is not installed


def lengths_of(columns: Columns, *, with_model: bool) -> Lengths | None:
    """Return the lengths of the pairs; None: there are none."""
    rows = np.flatnonzero(columns.is_pair)
    if not len(rows):
        return None
    best, worst = columns.best_bytes[rows], columns.worst_bytes[rows]
    longer = float((best > worst).sum() + (best == worst).sum() / 2)
    return Lengths(
        gap=float((best - worst).mean()),
        ratio=float(np.median(best / np.maximum(1, worst))),
        longer=wilson(longer, len(rows)),
        model=length_model(columns, rows) if with_model and len(rows) >= MIN_PAIRS else None,
    )


def find_length_bias(columns: Columns, lengths: Lengths | None) -> Iterator[Finding]:
    """Report that length alone predicts the chosen completion in significantly more than LONGER_CHOSEN of the pairs."""
    if lengths is None or lengths.model is None:
        return
    count = int(columns.is_pair.sum())
    if wilson(lengths.model.accuracy * count, count).low <= LONGER_CHOSEN:
        return
    is_longer = lengths.longer.value > 0.5
    order = np.argsort((columns.best_bytes - columns.worst_bytes) * (-1 if is_longer else 1), kind="stable")
    longest = order[columns.is_pair[order]]
    yield Finding(
        name="length",
        severity=Severity.warning,
        what=f"length alone predicts the chosen completion in {percent(lengths.model.accuracy)} of held-out pairs, and "
        f"explains {percent(lengths.model.explained)} of the preferences' entropy (McFadden's R²); the chosen "
        f"completion is longer in {percent(lengths.longer.value)}, by {lengths.gap:+,.0f} bytes in the mean",
        count=count,
        of=None,
        fix="balance the lengths, or use a length-normalised loss (algorithm.loss_type: sigmoid_norm, length_alpha)",
        rows=single(columns.numbers[longest]),
    )
