"""How sure a comparison is: intervals, win rates, strengths, the difference of two methods at equal cost. Pure numpy.

The unit that is drawn again is the prompt, never the completion: completions of one prompt, and two models' answers to
it, go together. Every function that draws takes a seed; the same seed gives the same interval.
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
MAX_CELLS = 4_000_000  # of draws × prompts that are held at a time


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
        """Whether a difference was shown at all."""
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
    """The percentile bootstrap over prompts (Efron 1979): `statistic` of the data, and its quantiles over `num_draws`
    samples of as many prompts, drawn with replacement.

    `statistic` is given weights [D, num_prompts], how often each prompt is in each of D samples, and answers [D]. Draws
    for which it is not a number are left out. ValueError for fewer than two prompts.
    """
    if num_prompts < 2:
        raise ValueError(f"an interval over prompts needs at least two of them, there are {num_prompts}")
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
"""A statistic [D] of weights of prompts [D, n] and, for each group of seeds, of its seeds [D, S]."""


def crossed_bootstrap(
    statistic: Crossed,
    num_prompts: int,
    num_seeds: Sequence[int],
    *,
    seed: int,
    confidence: float = 0.95,
    num_draws: int = NUM_DRAWS,
) -> Interval:
    """The bootstrap over prompts and seeds at once (Owen 2007, the pigeonhole bootstrap): every draw takes prompts, and
    of each group of runs that differ in their seeds alone takes seeds, independently of each other.

    Of S seeds S − 1 are drawn, with replacement (Rao and Wu 1988): drawing S would understate the variance of their
    mean by 1 − 1/S, by half for two. A single seed is always itself, and the interval then says nothing of others.
    ValueError for fewer than two prompts.
    """
    if num_prompts < 2:
        raise ValueError(f"an interval over prompts needs at least two of them, there are {num_prompts}")
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
    """Of a figure per prompt [n]: the mean over prompts."""
    assert values.ndim == 1, values.shape
    return bootstrap(
        lambda weights: weights @ values / len(values),
        len(values),
        seed=seed,
        confidence=confidence,
        num_draws=num_draws,
    )


def wilson(successes: float, trials: int, *, confidence: float = 0.95) -> Interval:
    """A proportion with Wilson's score interval (1927): right also near 0 and 1, where p ± z √(pq/n) is not.

    (p̂ + z²/2n ± z √(p̂(1 − p̂)/n + z²/4n²)) / (1 + z²/n). ValueError without a trial.
    """
    if trials < 1 or not 0 <= successes <= trials:
        raise ValueError(f"{successes:g} successes in {trials} trials are no proportion")
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
    """What the win rate would be if both wrote answers of one length (AlpacaEval 2, arXiv 2404.04475).

    The logistic regression P(win) = σ(θ + φ tanh(Δ/sd Δ)), Δ = |ours| − |theirs| of each prompt, in characters or
    tokens [n]; the answer is σ(θ). The paper's third term, how difficult an instruction is, is fitted over many models
    and left out, as it must be for two. φ has a ridge of ½φ² on the summed loss, as weak as a few prompts: it keeps the
    fit finite where length explains everything.
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
    """θ and φ [D, 2] of each weighted sample [D, n], by Newton's method from 0.

    θ has a ridge of 1e-6: a sample of wins only is σ(θ) = 1 to six digits, not a division by zero.
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
        theta -= np.clip(step / determinant[:, None], -2, 2)  # far from the optimum a whole step may go too far
        if np.abs(gradient).max() < 1e-9 * len(outcomes):
            break
    return theta


def _sigmoid(x: Values) -> Values:
    probabilities: Values = np.exp(-np.logaddexp(0, -x))
    return probabilities


# ------------------------------------------------------------------------------------------------ at equal cost


@dataclass(frozen=True, kw_only=True, slots=True)
class Curve:
    """What a method reached at p settings or checkpoints on n prompts: its cost (KL, GPU-seconds) and its figure.

    Example: two checkpoints on three prompts at KL 1 and 4: `Curve(cost=[[1, 1, 1], [4, 4, 4]], figure=[[0, 1, 0], [1,
    1, 0]])`. A cost that is measured per prompt has its own figure for each, and its uncertainty counts.
    """

    cost: Values  # [p, n]
    figure: Values  # [p, n]

    def __post_init__(self) -> None:
        if self.cost.shape != self.figure.shape or self.cost.ndim != 2 or len(self.cost) < 2:
            raise ValueError(f"a curve has two points or more, of one shape; {self.cost.shape}, {self.figure.shape}")

    @property
    def range(self) -> tuple[float, float]:
        costs = self.cost.mean(1)
        return float(costs.min()), float(costs.max())

    def at(self, cost: float, weights: Values) -> Values:
        """The mean figure [D] of each weighted sample of prompts [D, n] at `cost`, linear between the points; not a
        number outside of them."""
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
    """The figure of `ours` − `theirs` at equal `cost`, both interpolated, on the same prompts drawn together.

    `num_seeds`: of runs that a curve is made of; it then has the n prompts of the first, of the second, … on its last
    axis. None where one of them was not measured on both sides of `cost`, or, as its cost is uncertain, was not in more
    than 5 % of the draws: nothing is extrapolated.
    """
    sizes = [curve.figure.shape[1] // count for curve, count in zip((ours, theirs), num_seeds, strict=True)]
    if sizes[0] != sizes[1]:
        raise ValueError(f"{sizes[0]} prompts and {sizes[1]} prompts cannot be paired")
    if any(not curve.range[0] <= cost <= curve.range[1] for curve in (ours, theirs)):
        return None
    outside, drawn = 0, 0

    def statistic(prompts: Values, seeds: Sequence[Values]) -> Values:
        nonlocal outside, drawn
        gaps = ours.at(cost, _of_runs(prompts, seeds[0])) - theirs.at(cost, _of_runs(prompts, seeds[1]))
        outside, drawn = outside + int(np.isnan(gaps).sum()), drawn + len(gaps)
        return gaps

    found = crossed_bootstrap(statistic, sizes[0], num_seeds, seed=seed, confidence=confidence, num_draws=num_draws)
    return None if outside > 0.05 * drawn else found


def _of_runs(prompts: Values, seeds: Values) -> Values:
    """[D, n] and [D, S] -> [D, S n]: how often each prompt of each run is drawn."""
    whole: Values = (seeds[:, :, None] * prompts[:, None, :]).reshape(len(prompts), -1)
    return whole
