"""The arithmetic of a comparison. Pure numpy on lives; every interval is over prompts and seeds (`crossed_bootstrap`).

    win rate       of an answer against one of the base's, drawn at random, to the same prompt: 1, ½ for a tie, 0
    frontier       of a method: KL and win rate of each setting at each evaluation; those that no other point of the
                   method beats in both make its front
    duel           of two methods at equal cost: how often an answer of one beats one of the other. Each stands with the
                   setting that is best on the other half of the prompts, so that nobody is chosen by what judges them
    at equal KL    the difference of two fronts, linear between their points, nothing beyond them

At a cost between two evaluations a run is the mixture of both: each answers with the weight of its nearness.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from orchestrator.compare.run_curves import Axis, EvalPoint, RunCurve, TaskRuns
from orchestrator.evaluation.statistics import Curve, Interval, Values, crossed_bootstrap, difference_at

SLACK = 1.02  # a run that ends this near below a cost has spent it
NUM_KLS = 9  # at which two fronts are compared


@dataclass(frozen=True, kw_only=True, slots=True)
class Point:
    """Where the runs of one setting stood at one evaluation."""

    method: str
    setting: str
    step: int | None  # None: at the end, where seeds ended at different steps
    is_end: bool
    num_seeds: int
    spent: Mapping[Axis, float]  # mean over seeds
    kl: Interval | None
    win: Interval
    length: float
    on_front: bool = False


@dataclass(frozen=True, kw_only=True, slots=True)
class HeadToHead:
    """Two methods at equal cost. `win`: how often `ours` beats `theirs`."""

    ours: str
    theirs: str
    win: Interval
    settings: tuple[tuple[str, ...], tuple[str, ...]]  # that stood for each of them

    @property
    def verdict(self) -> int:
        """1: ours is ahead, −1: theirs, 0: no difference was shown."""
        return int(self.win.low > 0.5) - int(self.win.high < 0.5)


@dataclass(frozen=True, kw_only=True, slots=True)
class KlGap:
    """The win rate of one front minus that of another at one KL. None: one of them was not measured around it."""

    kl: float
    difference: Interval | None


def beats(ours: Values, theirs: Values) -> Values:
    """[n, k], [n, m] -> [n]: the mean over all pairs of answers to a prompt."""
    gaps = ours[:, :, None] - theirs[:, None, :]
    outcomes: Values = ((gaps > 0) + 0.5 * (gaps == 0)).mean((1, 2))
    return outcomes


# ------------------------------------------------------------------------------------------------ points


def points_of(field: TaskRuns, method: str, *, seed: int = 0) -> list[Point]:
    """Every setting at every evaluation that all of its seeds have, and at its end; those of the front are marked."""
    found = []
    for setting, curves in field.of(method).items():
        for evals, is_end in _aligned(curves):
            found.append(_point(field, method, setting, evals, is_end=is_end, seed=seed))
    front = set(front_of([(p.kl.value, p.win.value) if p.kl else None for p in found]))
    return [replace(p, on_front=i in front) for i, p in enumerate(found)]


def _aligned(curves: Sequence[RunCurve]) -> Iterator[tuple[list[EvalPoint], bool]]:
    """After the base: moments at the same step of every seed, then the last of each."""
    steps = set.intersection(*({m.step for m in curve.evals[1:-1]} for curve in curves))
    for step in sorted(steps):
        yield [next(m for m in curve.evals if m.step == step) for curve in curves], False
    yield [curve.evals[-1] for curve in curves], True


def _point(field: TaskRuns, method: str, setting: str, evals: Sequence[EvalPoint], *, is_end: bool, seed: int) -> Point:
    wins = np.stack([beats(m.gold, field.base) for m in evals])  # [S, n]
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
    """Of [S, n], over seeds and prompts."""
    return crossed_bootstrap(
        lambda prompts, seeds: _weighted(values, prompts, seeds[0]), values.shape[1], [len(values)], seed=seed
    )


def _weighted(values: Values, prompts: Values, seeds: Values) -> Values:
    """[S, n] with weights [D, n] and [D, S] -> [D]."""
    total: Values = ((prompts @ values.T) * seeds).sum(1) / (prompts.sum(1) * seeds.sum(1))
    return total


def front_of(points: Sequence[tuple[float, float] | None]) -> list[int]:
    """Of (KL, win rate): those that no other one equals or beats in both, by rising KL."""
    order = sorted((i for i, p in enumerate(points) if p is not None), key=lambda i: (points[i][0], -points[i][1]))  # type: ignore[index]
    best, found = -np.inf, []
    for i in order:
        if points[i][1] > best:  # type: ignore[index]
            found.append(i)
            best = points[i][1]  # type: ignore[index]
    return found


# ------------------------------------------------------------------------------------------------ at equal cost


def common_cost(field: TaskRuns, axis: Axis) -> float:
    """What every method has spent in at least one of its settings: the most that all can be compared at. Not a number
    where a run did not tell."""
    ends = [max(min(curve.end(axis) for curve in curves) for curves in field.of(m).values()) for m in field.methods]
    return float(min(ends))


def mixture_at(curve: RunCurve, axis: Axis, cost: float) -> list[tuple[float, EvalPoint]] | None:
    """Who answers for a run at `cost`, with weights that sum to 1; None: it had not spent so much when it ended."""
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


def _beat(ours: Sequence[tuple[float, EvalPoint]], gold: Values) -> Values:
    outcomes: Values = np.sum([weight * beats(m.gold, gold) for weight, m in ours], axis=0)
    return outcomes


def matchup(field: TaskRuns, ours: str, theirs: str, axis: Axis, cost: float, *, seed: int = 0) -> HeadToHead | None:
    """None where one of them has no setting that came so far with every seed."""
    sides = [_standing(field, method, axis, cost) for method in (ours, theirs)]
    if not all(sides):
        return None
    fold = np.arange(len(field.prompts)) % 2
    chosen = [[_best(field, side, fold != f) for f in (0, 1)] for side in sides]
    outcomes = np.empty((*(len(next(iter(side.values()))) for side in sides), len(fold)))
    for f in (0, 1):
        mine, others = (side[setting[f]] for side, setting in zip(sides, chosen, strict=True))
        for a, own in enumerate(mine):
            for b, other in enumerate(others):
                whole = np.sum([weight * _beat(own, m.gold) for weight, m in other], axis=0)
                outcomes[a, b, fold == f] = whole[fold == f]
    win = crossed_bootstrap(
        lambda prompts, seeds: _paired(outcomes, prompts, seeds), len(fold), list(outcomes.shape[:2]), seed=seed
    )
    settings = tuple(tuple(dict.fromkeys(pair)) for pair in chosen)
    return HeadToHead(ours=ours, theirs=theirs, win=win, settings=(settings[0], settings[1]))


def _paired(outcomes: Values, prompts: Values, seeds: Sequence[Values]) -> Values:
    """[A, B, n] with weights [D, n], [D, A], [D, B] -> [D]."""
    sums = np.einsum("abn,dn->dab", outcomes, prompts, optimize=True)
    whole = np.einsum("dab,da,db->d", sums, *seeds, optimize=True)
    means: Values = whole / (prompts.sum(1) * seeds[0].sum(1) * seeds[1].sum(1))
    return means


Standing = Mapping[str, list[list[tuple[float, EvalPoint]]]]
"""By setting, who answers for each seed."""


def _standing(field: TaskRuns, method: str, axis: Axis, cost: float) -> Standing:
    found = {}
    most = max(len(curves) for curves in field.of(method).values())
    for setting, curves in field.of(method).items():
        mixtures = [m for curve in curves if (m := mixture_at(curve, axis, cost)) is not None]
        if len(mixtures) == len(curves) == most:
            found[setting] = mixtures
    return found


def _best(field: TaskRuns, standing: Standing, of: Values) -> str:
    """The setting that wins most against the base on the prompts `of` [n]."""
    scores = {
        setting: float(np.mean([_beat(mixture, field.base)[of].mean() for mixture in mixtures]))
        for setting, mixtures in standing.items()
    }
    return max(scores, key=lambda setting: scores[setting])


# ------------------------------------------------------------------------------------------------ at equal KL


def gaps(
    field: TaskRuns, ours: str, theirs: str, points: Mapping[str, Sequence[Point]], *, seed: int = 0
) -> list[KlGap]:
    """Front minus front at `NUM_KLS` values of the KL between those that both were measured at; empty: there is none.

    The base, from which all begin, is no point of a front: on the way from it to its first point a method may be
    anywhere above the straight line.
    """
    curves = [_front_curve(field, points[method]) for method in (ours, theirs)]
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


def _front_curve(field: TaskRuns, points: Sequence[Point]) -> tuple[Curve, int] | None:
    """None for a front of less than two points. Each prompt of each seed is a unit."""
    front = sorted((p for p in points if p.on_front and p.kl is not None), key=lambda p: p.kl.value if p.kl else 0.0)
    if not front:
        return None
    num_seeds = front[0].num_seeds
    costs, figures = [], []
    for point in front:
        curves = field.of(point.method)[point.setting]
        evals = [
            curve.evals[-1] if point.is_end else next(m for m in curve.evals if m.step == point.step)
            for curve in curves
        ]
        if len(evals) != num_seeds:
            continue
        costs.append(np.concatenate([m.kl for m in evals if m.kl is not None]))
        figures.append(np.concatenate([beats(m.gold, field.base) for m in evals]))
    return (Curve(cost=np.stack(costs), figure=np.stack(figures)), num_seeds) if len(costs) > 1 else None
