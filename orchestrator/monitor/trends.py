"""Tests for a trend in a noisy series and for a difference between two series.

A step's metrics are means over a batch: noisy, with outliers, and nearly independent from row to row while the policy
hardly changes. Therefore no test judges a single point, and none assumes a distribution of the noise.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Values = NDArray[np.float64]
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


def difference(before: Values, after: Values) -> float:
    """Compute Welch's t: the mean of `after` [m] minus the mean of `before` [n], in standard errors.

    (mean a − mean b) / √(var a / m + var b / n), with variances over m − 1 and n − 1. The result is 0 for equal
    constants and ±∞ for different ones.
    """
    assert min(len(before), len(after)) >= 2, "a variance needs two values"
    gap = float(after.mean() - before.mean())
    error = math.sqrt(float(after.var(ddof=1)) / len(after) + float(before.var(ddof=1)) / len(before))
    if error <= 1e-12 * max(abs(float(after.mean())), abs(float(before.mean())), 1e-300):
        return 0.0 if gap == 0 else math.copysign(math.inf, gap)
    return gap / error
