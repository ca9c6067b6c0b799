"""Agreement of annotators on the same comparisons: percent agreement and Krippendorff's α, each with an interval.

α = 1 − observed disagreement / disagreement by chance (Krippendorff, Content Analysis, 2004): 1 is perfect, 0 chance.
The only module that uses krippendorff.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from orchestrator.audit.finding import Finding, Numbers, Severity, paired
from orchestrator.audit.reading import Columns
from orchestrator.evaluation.statistics import Interval, wilson

RECONSIDER = 0.70  # agreement below which annotators do not share one task
GOOD = 0.85  # agreement from which on the task is clear
NUM_DRAWS = 200
MAX_UNITS = 20_000  # comparisons that are drawn for an interval
SEED = 0


@dataclass(frozen=True, kw_only=True, slots=True)
class Agreement:
    """Agreement on the comparisons that were judged at least twice.

    Example: `Agreement(comparisons=300, judgements=650, percent=Interval(…), alpha=Interval(…))`.
    """

    comparisons: int
    judgements: int
    percent: Interval  # share of pairs of judgements on one comparison that agree
    alpha: Interval | None  # None: every judgement is the same, or the library is not installed


def agreement_of(columns: Columns) -> Agreement | None:
    """Return the agreement of annotators; None: no comparison was judged twice by different annotators."""
    counts = judgements_of(columns)
    if not len(counts):
        return None
    same = (counts * (counts - 1) / 2).sum()
    total = (counts.sum(1) * (counts.sum(1) - 1) / 2).sum()
    return Agreement(
        comparisons=len(counts),
        judgements=int(counts.sum()),
        percent=wilson(float(same), int(total)),
        alpha=_alpha_interval(counts),
    )


def find_disagreement(columns: Columns, agreement: Agreement | None) -> Iterator[Finding]:
    """Report agreement below the 70 % line as a warning, and below the 85 % line as a note."""
    if agreement is None or agreement.percent.value >= GOOD:
        return
    is_low = agreement.percent.value < RECONSIDER
    alpha = "" if agreement.alpha is None else f", Krippendorff's α {agreement.alpha}"
    line = f"below {RECONSIDER:.0%}: reconsider the task" if is_low else f"between {RECONSIDER:.0%} and {GOOD:.0%}"
    yield Finding(
        name="agreement",
        severity=Severity.warning if is_low else Severity.note,
        what=f"two annotators agree on {agreement.percent.value:.0%} of {agreement.comparisons:,} comparisons{alpha}; "
        f"{line}",
        count=agreement.comparisons,
        of=None,
        fix="reconsider the task: its question, its guidelines, or whether annotators can know the answer"
        if is_low
        else "look at comparisons on which annotators differ; label smoothing by the share of wrong labels helps",
        rows=_disputed(columns),
    )


def judgements_of(columns: Columns) -> NDArray[np.int64]:
    """Return counts [U, 2] of the judgements each way, of comparisons that two annotators or more have judged.

    An annotator has one judgement of a comparison; one who has decided it both ways has none. Rows with `votes` are
    comparisons of their own.
    """
    claims = columns.keys.claims()
    coders = columns.annotators.codes[claims.rows]
    named = coders >= 0
    unordered, is_high = np.minimum(claims.claims, claims.opposites)[named], (claims.claims > claims.opposites)[named]
    judged = np.unique(np.stack([unordered, coders[named].astype(np.uint64), is_high.astype(np.uint64)], 1), axis=0)
    again = (judged[1:, :2] == judged[:-1, :2]).all(1)
    judged = judged[~(np.append(again, False) | np.append(False, again))[: len(judged)]]
    _, unit = np.unique(judged[:, 0], return_inverse=True)
    counts = np.zeros((unit.max(initial=-1) + 1, 2), np.int64)
    np.add.at(counts, (unit, judged[:, 2].astype(np.int64)), 1)
    counts = np.concatenate([counts, _turned(columns.votes[columns.votes.sum(1) > 0])])
    several: NDArray[np.int64] = counts[counts.sum(1) > 1]
    return several


def _turned(votes: NDArray[np.int64]) -> NDArray[np.int64]:
    """Reverse every other row of counts: which completion stands first must not carry meaning."""
    turned = votes.copy()
    turned[1::2] = votes[1::2, ::-1]
    return turned


def _alpha_interval(counts: NDArray[np.int64]) -> Interval | None:
    try:
        import krippendorff
    except ImportError:
        return None

    def alpha(units: NDArray[np.int64]) -> float:
        if (units.sum(0) == 0).any():
            return float("nan")  # every judgement is the same: no disagreement can be expected by chance
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", RuntimeWarning)
            return float(krippendorff.alpha(value_counts=units, level_of_measurement="nominal"))

    value = alpha(counts)
    if np.isnan(value):
        return None
    generator = np.random.Generator(np.random.Philox(SEED))
    size = min(len(counts), MAX_UNITS)
    drawn = [alpha(counts[generator.integers(0, len(counts), size)]) for _ in range(NUM_DRAWS)]
    scale = np.sqrt(size / len(counts))  # an interval over fewer units is wider
    low, high = (value + (q - value) * scale for q in np.nanquantile(drawn, (0.025, 0.975)))
    return Interval(value=value, low=float(low), high=float(high))


def _disputed(columns: Columns) -> tuple[tuple[int, ...], ...]:
    """Return pairs of rows in which different annotators decide a comparison in opposite ways."""
    claims = columns.keys.claims()
    known, first = np.unique(claims.claims, return_index=True)
    if not len(known):
        return ()
    at = np.minimum(np.searchsorted(known, claims.opposites), len(known) - 1)
    other: Numbers = claims.rows[first[at]]
    codes = columns.annotators.codes
    found = np.flatnonzero(
        (known[at] == claims.opposites) & (codes[other] != codes[claims.rows]) & (other < claims.rows)
    )
    return paired(columns.numbers[claims.rows[found]], columns.numbers[other[found]])
