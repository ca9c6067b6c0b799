"""Statistics of comparisons: intervals, win rates, and the difference of two methods at equal cost. Pure numpy.

The resampled unit is the prompt, never the completion: all completions of a prompt, from both models, stay together.
Every function that draws samples takes a seed; the same seed gives the same interval.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

Values: TypeAlias = NDArray[np.float64]
NUM_DRAWS = 2000
MAX_CELLS = 4_000_000  # draws × prompts that are held in memory at a time


@dataclass(frozen=True, kw_only=True, slots=True)
class Interval:
    """An estimate with its confidence interval. Example: `Interval(value=0.61, low=0.55, high=0.67)`."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.value:.3g} [{self.low:.3g}, {self.high:.3g}]"

    @property
    def excludes_zero(self) -> bool:
        """True if the interval excludes 0: the difference is significant."""
        return self.low > 0 or self.high < 0


# ------------------------------------------------------------------------------------------------ bootstrap


def bootstrap(
    statistic: Callable[[Values], Values],
    num_prompts: int,
    *,
    seed: int,
    confidence: float = 0.95,
    num_draws: int = NUM_DRAWS,
) -> Interval:
    """Compute the percentile bootstrap over prompts (Efron 1979).

    Each of `num_draws` samples draws `num_prompts` prompts with replacement; the interval is given by the quantiles of
    the statistic over the samples. Samples with a NaN statistic are left out.

    Args:
        statistic: maps weights [D, num_prompts], the count of each prompt in each of D samples, to values [D].
        num_prompts: number of prompts, at least 2.
        seed: seed of the draws.
        confidence: level of the interval.
        num_draws: number of samples.

    Raises:
        ValueError: there are fewer than two prompts.
    """
    if num_prompts < 2:
        raise ValueError(f"an interval over prompts needs at least two prompts, got {num_prompts}")
    generator = np.random.Generator(np.random.Philox(seed))
    share = np.full(num_prompts, 1 / num_prompts)
    size = max(1, MAX_CELLS // num_prompts)
    drawn = [
        statistic(generator.multinomial(num_prompts, share, size=min(size, num_draws - begin)).astype(np.float64))
        for begin in range(0, num_draws, size)
    ]
    value = float(statistic(np.ones((1, num_prompts)))[0])
    low, high = np.nanquantile(np.concatenate(drawn), [(1 - confidence) / 2, (1 + confidence) / 2])
    return Interval(value=value, low=float(low), high=float(high))


Crossed: TypeAlias = Callable[[Values, Sequence[Values]], Values]
"""Function of the weights of prompts [D, n] and of the seeds of each group of runs [D, S]. It returns values [D]."""


def crossed_bootstrap(
    statistic: Crossed,
    num_prompts: int,
    num_seeds: Sequence[int],
    *,
    seed: int,
    confidence: float = 0.95,
    num_draws: int = NUM_DRAWS,
) -> Interval:
    """Compute the bootstrap over prompts and seeds at once (pigeonhole bootstrap, Owen 2007).

    Every draw resamples prompts and, independently, the seeds of each group of runs that differ only in their seed.
    S − 1 of S seeds are drawn with replacement (Rao and Wu 1988): drawing S would shrink the variance of their mean by
    the factor 1 − 1/S, one half for two seeds. A single seed is always drawn, so the interval covers no other seeds.

    Args:
        statistic: see `Crossed`.
        num_prompts: number of prompts, at least 2.
        num_seeds: number of seeds of each group of runs.
        seed: seed of the draws.
        confidence: level of the interval.
        num_draws: number of samples.

    Raises:
        ValueError: there are fewer than two prompts.
    """
    if num_prompts < 2:
        raise ValueError(f"an interval over prompts needs at least two prompts, got {num_prompts}")
    generator = np.random.Generator(np.random.Philox(seed))
    size = max(1, MAX_CELLS // (num_prompts * max(1, *num_seeds)))
    drawn = []
    for begin in range(0, num_draws, size):
        rows = min(size, num_draws - begin)
        prompts = generator.multinomial(num_prompts, np.full(num_prompts, 1 / num_prompts), size=rows)
        seeds = [generator.multinomial(max(1, s - 1), np.full(s, 1 / s), size=rows) for s in num_seeds]
        drawn.append(statistic(prompts.astype(np.float64), [part.astype(np.float64) for part in seeds]))
    value = float(statistic(np.ones((1, num_prompts)), [np.ones((1, s)) for s in num_seeds])[0])
    low, high = np.nanquantile(np.concatenate(drawn), [(1 - confidence) / 2, (1 + confidence) / 2])
    return Interval(value=value, low=float(low), high=float(high))


def mean(values: Values, *, seed: int, confidence: float = 0.95, num_draws: int = NUM_DRAWS) -> Interval:
    """Average one value per prompt, `values` [n], with a bootstrap interval."""
    assert values.ndim == 1, values.shape
    return bootstrap(
        lambda weights: weights @ values / len(values),
        len(values),
        seed=seed,
        confidence=confidence,
        num_draws=num_draws,
    )


def wilson(successes: float, trials: int, *, confidence: float = 0.95) -> Interval:
    """Compute a proportion with Wilson's score interval (1927), which also holds near 0 and 1, unlike p ± z √(pq/n).

    (p̂ + z²/2n ± z √(p̂(1 − p̂)/n + z²/4n²)) / (1 + z²/n).

    Raises:
        ValueError: there is no trial, or the counts are inconsistent.
    """
    if trials < 1 or not 0 <= successes <= trials:
        raise ValueError(f"{successes:g} successes in {trials} trials are not a proportion")
    z, p = NormalDist().inv_cdf((1 + confidence) / 2), successes / trials
    centre, scale = p + z * z / (2 * trials), 1 + z * z / trials
    half = z * math.sqrt(p * (1 - p) / trials + z * z / (4 * trials * trials))
    return Interval(value=p, low=max(0.0, (centre - half) / scale), high=min(1.0, (centre + half) / scale))


# ------------------------------------------------------------------------------------------------ win rates


def length_controlled_win_rate(
    outcomes: Values,
    ours: NDArray[Any],
    theirs: NDArray[Any],
    *,
    seed: int,
    confidence: float = 0.95,
    num_draws: int = NUM_DRAWS,
) -> Interval:
    """Estimate the win rate at equal lengths of both answers (AlpacaEval 2, arXiv 2404.04475).

    The model is the logistic regression P(win) = σ(θ + φ tanh(Δ/sd Δ)), where Δ = |ours| − |theirs|; the estimate is
    σ(θ). The paper's third term, the difficulty of an instruction, is left out because it needs more than two models. A
    ridge of ½φ² on the summed loss, as weak as a few prompts, keeps the fit finite if length explains every outcome.

    Args:
        outcomes: [n], one per prompt: 1 for a win, 0 for a loss, ½ for a tie.
        ours: [n], lengths of our answers, in characters or tokens.
        theirs: [n], lengths of their answers, in the same unit.
        seed: seed of the draws.
        confidence: level of the interval.
        num_draws: number of samples.

    Raises:
        ValueError: an outcome is outside [0, 1], or there are fewer than two prompts.
    """
    assert outcomes.ndim == 1, outcomes.shape
    if len(outcomes) and not (outcomes.min() >= 0 and outcomes.max() <= 1):
        raise ValueError("an outcome is between 0 (loss) and 1 (win)")
    assert ours.shape == theirs.shape == outcomes.shape, (ours.shape, theirs.shape, outcomes.shape)
    gaps = ours.astype(np.float64) - theirs.astype(np.float64)
    spread = float(gaps.std())
    features = np.tanh(gaps / spread) if spread > 0 else np.zeros(len(gaps))
    return bootstrap(
        lambda weights: _sigmoid(_logistic(outcomes, features, weights)[:, 0]),
        len(outcomes),
        seed=seed,
        confidence=confidence,
        num_draws=num_draws,
    )


def _logistic(outcomes: Values, features: Values, weights: Values, num_steps: int = 30) -> Values:
    """Fit θ and φ [D, 2] of each weighted sample [D, n], by Newton's method from 0.

    θ has a ridge of 1e-6: a sample of wins only gives σ(θ) = 1 to six digits instead of a division by zero.
    """
    ridge = np.asarray([1e-6, 1.0])
    theta = np.zeros((len(weights), 2))
    for _ in range(num_steps):
        p = _sigmoid(theta[:, :1] + theta[:, 1:] * features)  # [D, n]
        errors, curvature = weights * (p - outcomes), weights * p * (1 - p)
        gradient = np.stack([errors.sum(1), errors @ features], 1) + ridge * theta
        a, b, c = curvature.sum(1) + ridge[0], curvature @ features, curvature @ features**2 + ridge[1]
        determinant = a * c - b * b
        step = np.stack([c * gradient[:, 0] - b * gradient[:, 1], a * gradient[:, 1] - b * gradient[:, 0]], 1)
        theta -= np.clip(step / determinant[:, None], -2, 2)  # a full Newton step may overshoot far from the optimum
        if np.abs(gradient).max() < 1e-9 * len(outcomes):
            break
    return theta


def _sigmoid(x: Values) -> Values:
    probabilities: Values = np.exp(-np.logaddexp(0, -x))
    return probabilities


# ------------------------------------------------------------------------------------------------ at equal cost


@dataclass(frozen=True, kw_only=True, slots=True)
class Curve:
    """Cost (KL or GPU-seconds) and figure of a method at p settings or checkpoints, on n prompts.

    Example: two checkpoints on three prompts at KL 1 and 4: `Curve(cost=[[1, 1, 1], [4, 4, 4]], figure=[[0, 1, 0], [1,
    1, 0]])`. A cost that is measured per prompt, such as KL, may differ between prompts; its uncertainty is included.
    """

    cost: Values  # [p, n]
    figure: Values  # [p, n]

    def __post_init__(self) -> None:
        if self.cost.shape != self.figure.shape or self.cost.ndim != 2 or len(self.cost) < 2:
            raise ValueError(f"a curve needs two points and equal shapes: {self.cost.shape}, {self.figure.shape}")

    @property
    def range(self) -> tuple[float, float]:
        costs = self.cost.mean(1)
        return float(costs.min()), float(costs.max())

    def at(self, cost: float, weights: Values) -> Values:
        """Interpolate the mean figure [D] of each weighted sample of prompts [D, n] at `cost`.

        The interpolation is linear between the points. Outside of them the result is NaN.
        """
        total = weights.sum(1)
        costs, figures = weights @ self.cost.T / total[:, None], weights @ self.figure.T / total[:, None]  # [D, p]
        order = np.argsort(costs, axis=1, kind="stable")
        costs, figures = np.take_along_axis(costs, order, 1), np.take_along_axis(figures, order, 1)
        return np.asarray(
            [np.interp(cost, c, f, left=np.nan, right=np.nan) for c, f in zip(costs, figures, strict=True)], np.float64
        )


def difference_at(
    ours: Curve,
    theirs: Curve,
    cost: float,
    *,
    seed: int,
    num_seeds: tuple[int, int] = (1, 1),
    confidence: float = 0.95,
    num_draws: int = NUM_DRAWS,
) -> Interval | None:
    """Compute the difference of the figures of `ours` and `theirs` at equal `cost`, by interpolation.

    Both curves share the prompts, which are drawn together. Nothing is extrapolated: the result is None if `cost` is
    outside the range of a curve, or outside it in more than 5 % of the draws because the cost is uncertain.

    Args:
        ours: curve of the first method.
        theirs: curve of the second method.
        cost: cost at which the figures are compared.
        seed: seed of the draws.
        num_seeds: number of runs in each curve. The last axis of a curve has the n prompts of its first run, then those
            of the second, and so on.
        confidence: level of the interval.
        num_draws: number of samples.

    Raises:
        ValueError: the curves have different numbers of prompts.
    """
    sizes = [curve.figure.shape[1] // count for curve, count in zip((ours, theirs), num_seeds, strict=True)]
    if sizes[0] != sizes[1]:
        raise ValueError(f"{sizes[0]} prompts and {sizes[1]} prompts cannot be paired")
    if any(not curve.range[0] <= cost <= curve.range[1] for curve in (ours, theirs)):
        return None
    outside, drawn = 0, 0

    def statistic(prompts: Values, seeds: Sequence[Values]) -> Values:
        nonlocal outside, drawn
        gaps = ours.at(cost, _run_weights(prompts, seeds[0])) - theirs.at(cost, _run_weights(prompts, seeds[1]))
        outside, drawn = outside + int(np.isnan(gaps).sum()), drawn + len(gaps)
        return gaps

    interval = crossed_bootstrap(statistic, sizes[0], num_seeds, seed=seed, confidence=confidence, num_draws=num_draws)
    return None if outside > 0.05 * drawn else interval


def _run_weights(prompts: Values, seeds: Values) -> Values:
    """Combine weights of prompts [D, n] and seeds [D, S] into weights of every prompt of every run [D, S n]."""
    weights: Values = (seeds[:, :, None] * prompts[:, None, :]).reshape(len(prompts), -1)
    return weights
