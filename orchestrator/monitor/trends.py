"""Does a noisy curve rise, fall, or stand elsewhere than before? Pure arithmetic on short series.

A step's metrics are means over a batch: noisy, with outliers, each row nearly independent of the one before where the
policy hardly moves. So nothing here looks at a single point, and nothing assumes a shape of the noise.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Values = NDArray[np.float64]
CERTAIN = 3.0
"""Standard errors that make a difference certain: one in 740 is as large by chance, on one side."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Trend:
    """Example: `Trend(z=-4.1, change=-0.6)`: a fall of 0.6 over the window, 4.1 standard errors clear of none."""

    z: float
    change: float  # over the whole window, in the values' own unit

    @property
    def rises(self) -> bool:
        return self.z >= CERTAIN

    @property
    def falls(self) -> bool:
        return self.z <= -CERTAIN


def trend(values: Values) -> Trend:
    """The Mann–Kendall test with the Theil–Sen slope, for a series of n ≥ 2 values [n] in order.

    S = Σ_{i<j} sign(x_j − x_i);  Var S = (n(n−1)(2n+5) − Σ_ties t(t−1)(2t+5)) / 18;  z = (S − sign S) / √Var S
    (Mann 1945, Kendall 1975). The change is (n − 1) times the median of all slopes (x_j − x_i)/(j − i): up to 29 % of
    the values may be outliers without moving it far (Sen 1968).

    Of fewer than 8 values not even a series without exception reaches |z| = 3 (for 7 it is 2.85). There, a series that
    only falls or only rises is taken as certain, z = ∓3: one in n! is such by chance, one in 24 of four.
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
    """By how many standard errors the mean of `after` [m] is above that of `before` [n]: Welch's t.

    (mean a − mean b) / √(var a / m + var b / n), with variances over m − 1 and n − 1. Equal constants: 0; unequal ones:
    ±∞.
    """
    assert min(len(before), len(after)) >= 2, "a variance needs two values"
    gap = float(after.mean() - before.mean())
    error = math.sqrt(float(after.var(ddof=1)) / len(after) + float(before.var(ddof=1)) / len(before))
    if error <= 1e-12 * max(abs(float(after.mean())), abs(float(before.mean())), 1e-300):
        return 0.0 if gap == 0 else math.copysign(math.inf, gap)
    return gap / error
