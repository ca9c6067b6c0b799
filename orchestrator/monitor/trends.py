"""Tests for a trend in a noisy series, for the level of a metric and for a difference between two levels.

A step's metrics are means over a batch: noisy, with outliers, and nearly independent from row to row while the policy
hardly changes. Therefore no test judges a single point, and none assumes a distribution of the noise. A round's metrics
are means over thousands of completions and come with their standard error, so that one row is enough.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Self, TypeAlias

import numpy as np
from numpy.typing import NDArray

from workers.types import Z95

Values: TypeAlias = NDArray[np.float64]
CERTAIN = 3.0
"""Standard errors from which a difference counts as certain. One-sided, one in 740 is as large by chance."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Trend:
    """Trend of a series.

    Example: `Trend(z=-4.1, change=-0.6)` is a fall of 0.6 over the window, 4.1 standard errors from no trend.
    """

    z: float  # Mann–Kendall statistic
    change: float  # over the whole window, in the unit of the values

    @property
    def rises(self) -> bool:
        return self.z >= CERTAIN

    @property
    def falls(self) -> bool:
        return self.z <= -CERTAIN


def trend(values: Values) -> Trend:
    """Compute the Mann–Kendall test and the Theil–Sen slope of a series of n ≥ 2 values, `values` [n].

    S = Σ_{i<j} sign(x_j − x_i);  Var S = (n(n−1)(2n+5) − Σ_ties t(t−1)(2t+5)) / 18;  z = (S − sign S) / √Var S
    (Mann 1945, Kendall 1975). The change is (n − 1) times the median of all slopes (x_j − x_i)/(j − i): up to 29 % of
    the values may be outliers without moving it far (Sen 1968).

    With fewer than 8 values, even a monotonic series does not reach |z| = 3 (with 7 it is 2.85). There, a monotonic
    series counts as certain, z = ±3. By chance one series in n! rises throughout, which is one in 24 for four values.
    """
    assert values.ndim == 1, values.shape
    n = len(values)
    assert n >= 2, "a trend has at least two values"
    i, j = np.triu_indices(n, 1)
    differences = values[j] - values[i]
    s = float(np.sign(differences).sum())
    change = float(np.median(differences / (j - i))) * (n - 1)
    if n < 8 and abs(s) == n * (n - 1) / 2:
        return Trend(z=math.copysign(CERTAIN, s), change=change)
    _, ties = np.unique(values, return_counts=True)
    variance = (n * (n - 1) * (2 * n + 5) - float((ties * (ties - 1) * (2 * ties + 5)).sum())) / 18
    return Trend(z=(s - np.sign(s)) / math.sqrt(variance) if variance > 0 else 0.0, change=change)


@dataclass(frozen=True, kw_only=True, slots=True)
class Level:
    """Level of a metric over some rows.

    Several rows are an estimate with the scatter of the rows as its error. A single row is one with a standard error of
    its own, over prompts. Example: `Level(value=31.0, mean=30.8, error=0.4, rows=5)`.
    """

    value: float  # median of the rows
    mean: float
    error: float  # standard error of the mean
    rows: int

    @classmethod
    def of(cls, values: Values) -> Self:
        """Return the level of n ≥ 2 rows, `values` [n]. The standard error is √(variance over n − 1 / n)."""
        assert len(values) >= 2, "a variance needs two values"
        error = math.sqrt(float(values.var(ddof=1)) / len(values))
        return cls(value=float(np.median(values)), mean=float(values.mean()), error=error, rows=len(values))

    @classmethod
    def of_row(cls, value: float, error: float) -> Self:
        """Return the level of a single row whose metric was recorded with its standard error."""
        return cls(value=value, mean=value, error=error, rows=1)

    def times(self, factor: float) -> Level:
        return replace(self, value=self.value * factor, mean=self.mean * factor, error=self.error * abs(factor))

    def exceeds(self, limit: float, error: float = 0.0) -> bool:
        """Return whether the level is above `limit`, which has a standard error of its own.

        Of several rows, the median counts. A single row must be above the limit with certainty, by three standard
        errors of the difference.
        """
        return self.value - self._margin(error) > limit

    def is_below(self, limit: float, error: float = 0.0) -> bool:
        """Return whether the level is below `limit`, in the sense of `exceeds`."""
        return self.value + self._margin(error) < limit

    def _margin(self, error: float) -> float:
        return CERTAIN * math.hypot(self.error, error) if self.rows == 1 else 0.0


def change(before: Level, after: Level) -> float:
    """Compute the difference of two means in standard errors: (mean a − mean b) / √(error a² + error b²).

    Of several rows it is Welch's t. The result is 0 for equal means without an error and ±∞ for different ones.
    """
    gap, error = after.mean - before.mean, math.hypot(after.error, before.error)
    if error <= 1e-12 * max(abs(after.mean), abs(before.mean), 1e-300):
        return 0.0 if gap == 0 else math.copysign(math.inf, gap)
    return gap / error


def difference(before: Values, after: Values) -> float:
    """Compute Welch's t of two series: the mean of `after` [m] minus the mean of `before` [n], in standard errors."""
    return change(Level.of(before), Level.of(after))


def wilson(share: float, trials: float) -> tuple[float, float]:
    """Return the bounds of Wilson's 95 % score interval (1927) of a share that was measured in n `trials`.

    (p + z²/2n ± z √(p(1 − p)/n + z²/4n²)) / (1 + z²/n).
    """
    centre, scale = share + Z95**2 / (2 * trials), 1 + Z95**2 / trials
    half = Z95 * math.sqrt(share * (1 - share) / trials + Z95**2 / (4 * trials**2))
    return (centre - half) / scale, (centre + half) / scale
