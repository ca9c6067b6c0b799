"""Labels that go against what the rest of the data prefer: triggers, outlying sources and annotators, single flips.

    words ──small model, held out──► margin m of each row ──► disagreement d (m < 0), and e = P(d) of rows with this |m|

A group of rows (those with an n-gram in the prompt, those of an annotator) is tested by its weighted disagreement Σ w d
with w = log((1 − e)/e), the log-odds that a flip would turn around. Chernoff's bound holds for small groups, too; the
level is corrected for the number of groups (Bonferroni). Single flips are found by a fit of e(|m|) = f + (1 − 2f)
σ(−a|m|): without flips (f = 0) the disagreement vanishes where the model is sure.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from orchestrator.audit.finding import Finding, Numbers, Severity, percent, single
from orchestrator.audit.reading import Columns, Names
from orchestrator.audit.small_model import Margins, margins_by_words
from orchestrator.evaluation.statistics import wilson

MIN_ROWS = 500  # fewer pairs train no model
MIN_GROUP = 8  # rows of a group that is tested
MOST = 0.2  # share of all rows from which on an n-gram is no trigger
LEVEL = 0.001  # of all tests of one kind together
OUTLYING = 0.1  # difference of the disagreement of an outlying source or annotator from that of the others
LEARNED = 0.55  # accuracy of the model on held-out rows below which nothing can be said
SURE = 0.7  # probability from which on a row counts as flipped
NUM_BINS = 100
POWERS = np.geomspace(0.02, 2, 16)  # values of s in Chernoff's bound
GAIN = 8.0  # log-likelihood that flips must add (χ² of 16 with one degree of freedom)


@dataclass(frozen=True, kw_only=True, slots=True)
class Predictions:
    """Held-out predictions of the k tested pairs.

    Example: three pairs, the last one against the model: `disagrees=[0, 0, 1], expected=[.1, .3, .1]`.
    """

    rows: Numbers  # [k] indices in the columns
    margins: Margins  # [k] log-odds of the row's own preference
    disagrees: NDArray[np.float64]  # [k] 1: the model prefers the rejected completion
    expected: NDArray[np.float64]  # [k] disagreement of rows of which the model is as sure

    @property
    def accuracy(self) -> float:
        return float(1 - self.disagrees.mean())

    @property
    def weights(self) -> NDArray[np.float64]:
        return np.log((1 - self.expected) / self.expected)

    def excess(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Return the weighted excess of disagreement [k] of each row, and its variance [k]."""
        weights = self.weights
        return weights * (self.disagrees - self.expected), weights**2 * self.expected * (1 - self.expected)


def predict(columns: Columns) -> Predictions | None:
    """Predict every pair by models that were not trained on it; None: there are too few pairs."""
    rows = np.flatnonzero(columns.is_pair)
    if len(rows) < MIN_ROWS:
        return None
    margins = margins_by_words(columns, rows)
    disagrees = (margins < 0) + 0.5 * (margins == 0)
    slope, flips = fit_flips(np.abs(margins), disagrees)
    smooth = flips + (1 - 2 * flips) / (1 + np.exp(slope * np.abs(margins)))
    expected = np.clip(smooth, 1e-3, 0.5 - 1e-6)
    return Predictions(rows=rows, margins=margins, disagrees=disagrees, expected=expected)


def fit_flips(sure: Margins, disagrees: NDArray[np.float64]) -> tuple[float, float]:
    """Return a and f of e = f + (1 − 2f) σ(−a m), by maximum likelihood; f = 0 where it adds less than GAIN."""
    edges = np.quantile(sure, np.linspace(0, 1, NUM_BINS + 1)[1:-1])
    bins = np.searchsorted(edges, sure)
    count = np.bincount(bins, minlength=NUM_BINS)
    wrong = np.bincount(bins, disagrees, minlength=NUM_BINS)
    middle = np.bincount(bins, sure, minlength=NUM_BINS) / np.maximum(1, count)
    slopes = np.geomspace(0.05, 50, 160)[:, None, None] / max(1e-9, float(sure.mean()))
    shares = np.concatenate([[0.0], np.geomspace(1e-4, 0.45, 120)])[None, :, None]
    expected = shares + (1 - 2 * shares) / (1 + np.exp(np.minimum(50, slopes * middle)))
    expected = np.clip(expected, 1e-9, 1 - 1e-9)
    likelihood = (wrong * np.log(expected) + (count - wrong) * np.log(1 - expected)).sum(2)
    best, without = likelihood.argmax(), likelihood[:, 0].argmax()
    at = np.unravel_index(best, likelihood.shape)
    if likelihood.max() - likelihood[without, 0] < GAIN:
        return float(slopes[without, 0, 0]), 0.0
    return float(slopes[at[0], 0, 0]), float(shares[0, at[1], 0])


def surprise(group: Numbers, places: Numbers, size: int, predictions: Predictions) -> NDArray[np.float64]:
    """Return, for each of `size` groups, minus the logarithm of a bound on the probability of its disagreement.

    Chernoff's bound: P(Σ w d ≥ t) ≤ exp(Σ log(1 − e + e exp(s w)) − s t) for every s > 0; the smallest is taken.

    Args:
        group: [m] group of each member.
        places: [m] place of each member in the predictions.
    """
    expected, weights = predictions.expected[places], predictions.weights[places]
    observed = np.bincount(group, weights * predictions.disagrees[places], size)
    best = np.zeros(size)
    for s in POWERS:
        generated = np.bincount(group, np.log1p(expected * np.expm1(s * weights)), size)
        best = np.maximum(best, s * observed - generated)
    return best


def limit(tests: int) -> float:
    """Return the surprise that a group must exceed if `tests` groups are tested (Bonferroni)."""
    return math.log(max(1, tests) / LEVEL)


def find_outliers(columns: Columns, predictions: Predictions) -> Iterator[Finding]:
    """Report annotators and sources whose labels go against those of the others."""
    for names, kind in ((columns.annotators, "annotator"), (columns.sources, "source")):
        for code, own, others in outliers(names, predictions):
            numbers = columns.numbers[predictions.rows[names.codes[predictions.rows] == code]]
            is_reversed = wilson(own * len(numbers), len(numbers)).low > 0.5
            yield Finding(
                name=f"outlying_{kind}",
                severity=Severity.warning,
                what=f"are of {kind} `{names.names[code]}`, with whose labels a model of the other rows disagrees in "
                f"{percent(own)}, with the others' in {percent(others)}",
                count=len(numbers),
                of=columns.num_rows,
                fix=f"look at the rows of this {kind}: reversed labels, another task, or no attention",
                rows=single(numbers),
                dropped=numbers if is_reversed else np.zeros(0, np.int64),
            )


def outliers(names: Names, predictions: Predictions) -> list[tuple[int, float, float]]:
    """Return (code, disagreement, disagreement of the others) of each group that stands out, the worst first."""
    codes = names.codes[predictions.rows].astype(np.int64)
    places = np.flatnonzero(codes >= 0)
    size = len(names.names)
    if size < 2:
        return []
    count = np.bincount(codes[places], minlength=size)
    wrong = np.bincount(codes[places], predictions.disagrees[places], size)
    tested = count >= MIN_GROUP
    surprises = np.where(tested, surprise(codes[places], places, size, predictions), 0)
    own = wrong / np.maximum(1, count)
    others = (wrong.sum() - wrong) / np.maximum(1, count.sum() - count)
    found = np.flatnonzero((surprises > limit(int(tested.sum()))) & (own - others > OUTLYING))
    ordered = found[np.argsort(-surprises[found], kind="stable")]
    return [(int(code), float(own[code]), float(others[code])) for code in ordered]


def flipped(predictions: Predictions, explained: Numbers) -> tuple[Numbers, float]:
    """Return the indices in the columns of rows that are flipped with a probability of at least SURE, surest first.

    Return also the share of flipped labels by a fit to the rows that are not `explained` otherwise.
    """
    rest = np.flatnonzero(~np.isin(predictions.rows, explained))
    margins = predictions.margins[rest]
    slope, f = fit_flips(np.abs(margins), predictions.disagrees[rest])
    if not f:
        return np.zeros(0, np.int64), 0.0
    sure = slope * np.abs(margins)
    right = 1 / (1 + np.exp(-sure))
    probability = f * right / (f * right + (1 - f) * (1 - right))
    found = np.flatnonzero((margins < 0) & (probability >= SURE))
    return predictions.rows[rest[found[np.argsort(-sure[found], kind="stable")]]], f


def find_flips(columns: Columns, predictions: Predictions, explained: Numbers) -> Iterator[Finding]:
    """Report single rows whose label a sure model contradicts.

    Args:
        explained: indices of rows that another finding reports already.
    """
    found, share = flipped(predictions, explained)
    numbers = columns.numbers[found]
    if not len(numbers):
        return
    yield Finding(
        name="flipped_labels",
        severity=Severity.warning,
        what=f"have a label that a sure model contradicts; by its fit {percent(share)} of all labels are "
        "flipped, most of them where it cannot tell",
        count=len(numbers),
        of=columns.num_rows,
        fix="look at them; --write-clean leaves them out; algorithm.label_smoothing or loss_type: robust for the rest",
        rows=single(numbers),
        dropped=np.sort(numbers),
    )
