"""Reward of a completion from the scores of its scorers. Pure numpy.

    sum   r(y) = Σ_k w_k s_k(y): with equal weights the mean of an ensemble
    min   r(y) = min_k w_k s_k(y): worst-case optimisation of an ensemble (arXiv 2310.02743)

A scorer that abstains on y is left out of r(y). Scorers of different scales, such as two reward models, are normalised
first, each within the group G of y, as in GDPO (arXiv 2601.05242; TRL's `normalize_then_sum`):

    s_k(y) ← (s_k(y) − mean_G s_k) / (std_G s_k + 1e-4)
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from workers.config import Combine
from workers.types import Floats

EPSILON = 1e-4


@dataclass(frozen=True, kw_only=True, slots=True)
class Combination:
    """Settings by which several scores of a completion make its reward."""

    combine: Combine = "sum"
    normalize: bool = False  # give rewards of normalised scores as well, to train on


SUM = Combination()


def combined(scores: Floats, weights: Floats, combine: Combine) -> Floats:
    """Return the reward of each completion: [N].

    Args:
        scores: scores of K scorers, NaN where one abstains: [K, N].
        weights: weights of the scorers: [K]. One with weight 0 takes no part in a minimum.
    """
    with np.errstate(over="ignore"):
        weighted = scores * weights[:, None]
        if combine == "sum":
            total: Floats = np.nansum(weighted, 0).astype(np.float32)
            return total
    taking_part = weighted[weights != 0]
    abstain = np.isnan(taking_part)
    worst: Floats = np.where(abstain, np.inf, taking_part).min(0).astype(np.float32)
    return np.where(abstain.all(0), np.float32(0), worst)  # as in a sum


def normalized(scores: Floats, group_offsets: NDArray[np.int64]) -> Floats:
    """Return the scores [K, N] with mean 0 and standard deviation 1 within each group, or 0 if it has one score.

    Args:
        group_offsets: bounds of the G groups: [G + 1].
    """
    sizes = np.diff(group_offsets)
    group_of = np.repeat(np.arange(len(sizes)), sizes)
    result = np.full(scores.shape, np.nan, np.float32)
    for k, values in enumerate(scores.astype(np.float64)):
        given = np.flatnonzero(~np.isnan(values))
        groups = group_of[given]
        counts = np.bincount(groups, minlength=len(sizes))
        means = np.bincount(groups, weights=values[given], minlength=len(sizes)) / np.maximum(counts, 1)
        deviations = values[given] - means[groups]
        squares = np.bincount(groups, weights=deviations**2, minlength=len(sizes))
        stds = np.sqrt(squares / np.maximum(counts - 1, 1))
        result[k, given] = deviations / (stds[groups] + EPSILON)
    return result
