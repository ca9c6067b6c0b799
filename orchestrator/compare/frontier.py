"""Compute a comparison. Pure numpy on run curves; every interval is over prompts and seeds (`crossed_bootstrap`).

    win rate       score of an answer against a random answer of the base model to the same prompt: 1, ½ for a tie, 0
    front          points (KL, win rate) of a method, over settings and evaluations, that no other of its points beats
                   in both
    head to head   how often an answer of one method beats an answer of another at equal cost. Each method is
                   represented by its best setting, chosen on one half of the prompts and judged on the other
    at equal KL    difference of two fronts, interpolated linearly between their points, never extrapolated

At a cost between two evaluations, a run is interpolated linearly: a mixture of the answers of both evaluations.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from orchestrator.compare.run_curves import Axis, EvalPoint, RunCurve, TaskRuns
from orchestrator.evaluation.statistics import Curve, Interval, Values, crossed_bootstrap, difference_at

SLACK = 1.02  # a run that ended within this factor below a cost counts as having reached it
NUM_KLS = 9  # KLs at which two fronts are compared


@dataclass(frozen=True, kw_only=True, slots=True)
class Point:
    """Result of the runs of one setting at one evaluation."""

    method: str
    setting: str
    step: int | None  # None: the end of runs that ended at different steps
    is_end: bool
    num_seeds: int
    spent: Mapping[Axis, float]  # mean over seeds
    kl: Interval | None  # nats per completion; None: not measured
    win: Interval  # win rate against the base model
    length: float  # mean tokens of an answer
    on_front: bool = False


@dataclass(frozen=True, kw_only=True, slots=True)
class HeadToHead:
    """Win rate of one method against another at equal cost."""

    ours: str
    theirs: str
    win: Interval  # how often `ours` beats `theirs`
    settings: tuple[tuple[str, ...], tuple[str, ...]]  # settings that represent `ours` and `theirs`

    @property
    def verdict(self) -> int:
        """1 if `ours` is ahead, −1 if `theirs` is, 0 if no difference was shown."""
        return int(self.win.low > 0.5) - int(self.win.high < 0.5)


@dataclass(frozen=True, kw_only=True, slots=True)
class KlGap:
    """Difference of the win rates of two fronts at one KL."""

    kl: float
    difference: Interval | None  # None: one of the fronts was not measured around this KL


def beats(
    ours: Values, theirs: Values, *, our_weights: Values | None = None, their_weights: Values | None = None
) -> Values:
    """Return the win rate of `ours` [n, k] against `theirs` [n, m] for each prompt [n], over all pairs of answers.

    Weights [n, k] and [n, m] sum to 1 over the answers to a prompt; None: all equal."""
    gaps = ours[:, :, None] - theirs[:, None, :]
    wins = (gaps > 0) + 0.5 * (gaps == 0)
    if our_weights is not None:
        wins = wins * (our_weights * ours.shape[1])[:, :, None]
    if their_weights is not None:
        wins = wins * (their_weights * theirs.shape[1])[:, None, :]
    outcomes: Values = wins.mean((1, 2))
    return outcomes


def beats_point(ours: EvalPoint, theirs: EvalPoint) -> Values:
    """Return the win rate [n] of the answers of one evaluation against those of another."""
    return beats(ours.gold, theirs.gold, our_weights=ours.weights, their_weights=theirs.weights)


def beats_base(point: EvalPoint, runs: TaskRuns) -> Values:
    """Return the win rate [n] of the answers of an evaluation against those of the base model."""
    return beats(point.gold, runs.base) if point.over_base is None else point.over_base


# ------------------------------------------------------------------------------------------------ points


def points_of(runs: TaskRuns, method: str, *, seed: int = 0) -> list[Point]:
    """Return a point for each setting at its end and at each evaluation that all its seeds have."""
    points = []
    for setting, curves in runs.of(method).items():
        for evals, is_end in _aligned(curves):
            points.append(_point(runs, method, setting, evals, is_end=is_end, seed=seed))
    front = set(front_of([(p.kl.value, p.win.value) if p.kl else None for p in points]))
    return [replace(p, on_front=i in front) for i, p in enumerate(points)]


def _aligned(curves: Sequence[RunCurve]) -> Iterator[tuple[list[EvalPoint], bool]]:
    """Yield the evaluations of all seeds at each common step after the first, then the last one of each seed."""
    steps = set.intersection(*({m.step for m in curve.evals[1:-1]} for curve in curves))
    for step in sorted(steps):
        yield [next(m for m in curve.evals if m.step == step) for curve in curves], False
    yield [curve.evals[-1] for curve in curves], True


def _point(runs: TaskRuns, method: str, setting: str, evals: Sequence[EvalPoint], *, is_end: bool, seed: int) -> Point:
    wins = np.stack([beats_base(m, runs) for m in evals])  # [S, n]
    kls = [m.kl for m in evals if m.kl is not None]
    steps = {m.step for m in evals}
    return Point(
        method=method,
        setting=setting,
        step=steps.pop() if len(steps) == 1 else None,
        is_end=is_end,
        num_seeds=len(evals),
        spent={axis: float(np.mean([m.spent[axis] for m in evals])) for axis in evals[0].spent},
        kl=mean_over(np.stack(kls), seed=seed) if len(kls) == len(evals) else None,
        win=mean_over(wins, seed=seed),
        length=float(np.mean([m.length for m in evals])),
    )


def mean_over(values: Values, *, seed: int) -> Interval:
    """Return the mean of `values` [S, n] with its interval over seeds and prompts."""
    return crossed_bootstrap(
        lambda prompts, seeds: _weighted(values, prompts, seeds[0]), values.shape[1], [len(values)], seed=seed
    )


def _weighted(values: Values, prompts: Values, seeds: Values) -> Values:
    """Return the means [D] of `values` [S, n] with prompt weights [D, n] and seed weights [D, S]."""
    total: Values = ((prompts @ values.T) * seeds).sum(1) / (prompts.sum(1) * seeds.sum(1))
    return total


def front_of(points: Sequence[tuple[float, float] | None]) -> list[int]:
    """Return the indices of the (KL, win rate) points that no other point equals or beats in both, by rising KL."""
    order = sorted((i for i, p in enumerate(points) if p is not None), key=lambda i: (points[i][0], -points[i][1]))  # type: ignore[index]
    best, front = -np.inf, []
    for i in order:
        if points[i][1] > best:  # type: ignore[index]
            front.append(i)
            best = points[i][1]  # type: ignore[index]
    return front


# ------------------------------------------------------------------------------------------------ at equal cost


def common_cost(runs: TaskRuns, axis: Axis) -> float:
    """Return the largest cost that every trained method has reached with all seeds of some setting.

    It is NaN if the cost of a run is unknown."""
    by_method = [[curves for curves in runs.of(m).values() if curves[0].is_trained] for m in runs.methods]
    ends = [max(min(curve.end(axis) for curve in curves) for curves in settings) for settings in by_method if settings]
    return float(min(ends))


def mixture_at(curve: RunCurve, axis: Axis, cost: float) -> list[tuple[float, EvalPoint]] | None:
    """Return the weighted evaluations that represent a run at `cost`, or None if the run ended at a lower cost.

    The weights sum to 1. Best-of-n sampling is the same at every cost of training."""
    if not curve.is_trained:
        return [(1.0, curve.evals[-1])]
    spent = np.asarray([m.spent[axis] for m in curve.evals])
    if np.isnan(spent).any() or cost > spent[-1] * SLACK:
        return None
    after = int(np.searchsorted(spent, cost))
    if after >= len(spent):
        return [(1.0, curve.evals[-1])]
    if after == 0 or spent[after] == cost:
        return [(1.0, curve.evals[after])]
    weight = float((cost - spent[after - 1]) / (spent[after] - spent[after - 1]))
    return [(1 - weight, curve.evals[after - 1]), (weight, curve.evals[after])]


def _mean(parts: Iterable[tuple[float, Values]]) -> Values:
    outcomes: Values = np.sum([weight * values for weight, values in parts], axis=0)
    return outcomes


def matchup(runs: TaskRuns, ours: str, theirs: str, axis: Axis, cost: float, *, seed: int = 0) -> HeadToHead | None:
    """Compare two methods at `cost`; None if one of them has no setting whose seeds all reached it."""
    sides = [_mixtures(runs, method, axis, cost) for method in (ours, theirs)]
    if not all(sides):
        return None
    fold = np.arange(len(runs.prompts)) % 2
    chosen = [[_best(runs, side, fold != f) for f in (0, 1)] for side in sides]
    outcomes = np.empty((*(len(next(iter(side.values()))) for side in sides), len(fold)))
    for f in (0, 1):
        mine, others = (side[setting[f]] for side, setting in zip(sides, chosen, strict=True))
        for a, own in enumerate(mine):
            for b, other in enumerate(others):
                wins = _mean((w * v, beats_point(m, o)) for w, m in own for v, o in other)
                outcomes[a, b, fold == f] = wins[fold == f]
    win = crossed_bootstrap(
        lambda prompts, seeds: _paired(outcomes, prompts, seeds), len(fold), list(outcomes.shape[:2]), seed=seed
    )
    settings = tuple(tuple(dict.fromkeys(pair)) for pair in chosen)
    return HeadToHead(ours=ours, theirs=theirs, win=win, settings=(settings[0], settings[1]))


def _paired(outcomes: Values, prompts: Values, seeds: Sequence[Values]) -> Values:
    """Return the means [D] of `outcomes` [A, B, n] with weights [D, n] of prompts, [D, A] and [D, B] of seeds."""
    sums = np.einsum("abn,dn->dab", outcomes, prompts, optimize=True)
    totals = np.einsum("dab,da,db->d", sums, *seeds, optimize=True)
    means: Values = totals / (prompts.sum(1) * seeds[0].sum(1) * seeds[1].sum(1))
    return means


Mixtures = Mapping[str, list[list[tuple[float, EvalPoint]]]]
"""By setting, the weighted evaluations of each seed at one cost."""


def _mixtures(runs: TaskRuns, method: str, axis: Axis, cost: float) -> Mixtures:
    by_setting = {}
    num_seeds = max(len(curves) for curves in runs.of(method).values())
    for setting, curves in runs.of(method).items():
        mixtures = [m for curve in curves if (m := mixture_at(curve, axis, cost)) is not None]
        if len(mixtures) == len(curves) == num_seeds:
            by_setting[setting] = mixtures
    return by_setting


def _best(runs: TaskRuns, by_setting: Mixtures, prompts: Values) -> str:
    """Return the setting with the highest win rate against the base on the prompts of the mask [n]."""
    scores = {
        setting: float(np.mean([_mean((w, beats_base(m, runs)) for w, m in mix)[prompts].mean() for mix in mixtures]))
        for setting, mixtures in by_setting.items()
    }
    return max(scores, key=lambda setting: scores[setting])


# ------------------------------------------------------------------------------------------------ at equal KL


def gaps(
    runs: TaskRuns, ours: str, theirs: str, points: Mapping[str, Sequence[Point]], *, seed: int = 0
) -> list[KlGap]:
    """Return the difference of two fronts at `NUM_KLS` KLs in their common range; empty if they have none.

    The base model is not a point of a front: between it and the first measured point the true curve may lie above the
    straight line.
    """
    curves = [_front_curve(runs, points[method]) for method in (ours, theirs)]
    if any(curve is None for curve in curves):
        return []
    (mine, my_seeds), (others, their_seeds) = curves  # type: ignore[misc]
    low, high = (pick(ends) for pick, ends in zip((max, min), zip(mine.range, others.range, strict=True), strict=True))
    if low >= high:
        return []
    counts = (my_seeds, their_seeds)
    return [
        KlGap(kl=float(kl), difference=difference_at(mine, others, kl, num_seeds=counts, seed=seed, num_draws=500))
        for kl in np.linspace(low, high, NUM_KLS + 2)[1:-1]
    ]


def _front_curve(runs: TaskRuns, points: Sequence[Point]) -> tuple[Curve, int] | None:
    """Return a front as a curve over units (prompt, seed), with its number of seeds; None for fewer than two points."""
    front = sorted((p for p in points if p.on_front and p.kl is not None), key=lambda p: p.kl.value if p.kl else 0.0)
    if not front:
        return None
    num_seeds = front[0].num_seeds
    costs, figures = [], []
    for point in front:
        curves = runs.of(point.method)[point.setting]
        evals = [
            curve.evals[-1] if point.is_end else next(m for m in curve.evals if m.step == point.step)
            for curve in curves
        ]
        if len(evals) != num_seeds:
            continue
        costs.append(np.concatenate([m.kl for m in evals if m.kl is not None]))
        figures.append(np.concatenate([beats_base(m, runs) for m in evals]))
    return (Curve(cost=np.stack(costs), figure=np.stack(figures)), num_seeds) if len(costs) > 1 else None
