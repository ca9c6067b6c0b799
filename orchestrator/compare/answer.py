"""State the result of a comparison in words: which method is ahead at equal cost and at equal KL, with intervals."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np

from orchestrator.compare.frontier import HeadToHead, KlGap, Point, common_cost, gaps, matchup, points_of
from orchestrator.compare.run_curves import AXES, Axis, TaskRuns
from orchestrator.compare.temperatures import TemperaturePoint, temperature_points
from orchestrator.evaluation.statistics import Interval
from orchestrator.report.page import percent


@dataclass(frozen=True, kw_only=True, slots=True)
class Answer:
    """Result of the comparison of one task."""

    task: str
    about: str
    runs: TaskRuns
    unit: str  # name of a device: GPU or worker
    points: Mapping[str, Sequence[Point]]  # by method
    cost: Mapping[Axis, float]  # cost at which the methods are compared
    matchups: Mapping[Axis, Sequence[HeadToHead]]  # every two methods at equal cost, the better one first
    gaps: Mapping[tuple[str, str], Sequence[KlGap]]  # every two methods at equal KL
    order: Sequence[str]  # methods, the best at equal compute first
    temperatures: Sequence[TemperaturePoint] = ()  # win rate over the sampling temperature; empty: not measured

    @property
    def best(self) -> list[Point]:
        """Final point of each method's setting with the highest win rate over the base, in `order`."""
        return best_ends(self.points, self.order)

    @property
    def headline(self) -> str:
        return headline(self)


def best_ends(points: Mapping[str, Sequence[Point]], order: Sequence[str]) -> list[Point]:
    """Return the final point of each method's setting with the highest win rate over the base."""
    return [max((p for p in points[method] if p.is_end), key=lambda p: p.win.value) for method in order]


def answer(runs: TaskRuns, *, task: str, about: str, unit: str, seed: int = 0) -> Answer:
    """Compare the methods of one task with each other. `seed` is that of the bootstrap."""
    points = {method: points_of(runs, method, seed=seed) for method in runs.methods}
    cost = {axis: common_cost(runs, axis) for axis in AXES}
    matchups: dict[Axis, list[HeadToHead]] = {}
    for axis in AXES:
        if cost[axis] > 0:
            results = [matchup(runs, a, b, axis, cost[axis], seed=seed) for a, b in combinations(runs.methods, 2)]
            matchups[axis] = [_better_first(d) for d in results if d is not None]
    wins = {m: sum(_share(d, m) for d in matchups.get("device_seconds", ())) for m in runs.methods}
    order = sorted(runs.methods, key=lambda method: -wins[method])
    return Answer(
        task=task,
        about=about,
        runs=runs,
        unit=unit,
        points=points,
        cost=cost,
        matchups=matchups,
        gaps={(a, b): gaps(runs, a, b, points, seed=seed) for a, b in combinations(order, 2)} if runs.kl_of else {},
        order=order,
        temperatures=temperature_points(runs, best_ends(points, order), seed=seed),
    )


def _share(matchup: HeadToHead, method: str) -> float:
    return matchup.win.value if matchup.ours == method else 1 - matchup.win.value if matchup.theirs == method else 0.0


def _better_first(result: HeadToHead) -> HeadToHead:
    if result.win.value >= 0.5:
        return result
    win = Interval(value=1 - result.win.value, low=1 - result.win.high, high=1 - result.win.low)
    settings = (result.settings[1], result.settings[0])
    return HeadToHead(ours=result.theirs, theirs=result.ours, win=win, settings=settings)


# ------------------------------------------------------------------------------------------------ words


def points_of_percent(interval: Interval) -> str:
    """Format a difference of win rates: "+8 points [+3, +12]" for `Interval(value=0.08, low=0.03, high=0.12)`."""
    return f"{100 * interval.value:+.0f} points [{100 * interval.low:+.0f}, {100 * interval.high:+.0f}]"


def spent(answer: Answer, axis: Axis) -> str:
    """Describe the cost at which methods are compared, such as "equal compute (150 worker-seconds)"."""
    cost = answer.cost[axis]
    if axis == "device_seconds":
        return f"equal compute ({cost:,.0f} {answer.unit}-seconds)"
    return f"equal wall-clock time ({cost:,.0f} s)" if axis == "seconds" else f"equal training tokens ({cost:,.0f})"


def headline(answer: Answer) -> str:
    """Compare the best method with the others at equal compute, in one sentence."""
    matchups = answer.matchups.get("device_seconds", ())
    if not matchups:
        return "No comparison at equal compute: there is no cost at which all methods were evaluated."
    first = answer.order[0]
    own = {d.theirs if d.ours == first else d.ours: d for d in matchups if first in (d.ours, d.theirs)}
    behind = [m for m in answer.order[1:] if m in own and own[m].ours == first and own[m].verdict == 1]
    even = [m for m in answer.order[1:] if m in own and m not in behind]
    at = spent(answer, "device_seconds")
    if not behind:
        shown = "; ".join(f"{first} against {m} {percent(_from(own[m], first))}" for m in even)
        return f"At {at} no difference was shown: {shown}."
    wins = ", ".join(f"{percent(own[m].win)} against {m}" for m in behind)
    rest = "; ".join(f"no difference shown to {m} ({percent(_from(own[m], first))})" for m in even)
    return f"{first} ahead at {at}: {wins}{'; ' + rest if rest else ''}."


def _from(matchup: HeadToHead, method: str) -> Interval:
    if matchup.ours == method:
        return matchup.win
    return Interval(value=1 - matchup.win.value, low=1 - matchup.win.high, high=1 - matchup.win.low)


def sentences(answer: Answer) -> Iterator[str]:
    """Yield the sentences below the headline: results at equal time, at equal tokens and at equal KL."""
    for axis in ("seconds", "tokens"):
        ahead = [d for d in answer.matchups.get(axis, ()) if d.verdict == 1]
        if axis in answer.matchups:
            wins = "; ".join(f"{d.ours} beats {d.theirs} {percent(d.win)}" for d in ahead) or "no difference was shown"
            yield f"At {spent(answer, axis)}: {wins}."
    for (ours, theirs), differences in answer.gaps.items():
        yield at_equal_kl(ours, theirs, differences)


def at_equal_kl(ours: str, theirs: str, differences: Sequence[KlGap]) -> str:
    """State for which KLs one front is significantly above the other."""
    measured = [gap for gap in differences if gap.difference is not None]
    if not measured:
        return f"No comparison of {ours} and {theirs} at equal KL: they were measured at different KLs."
    signs = [int(g.difference.low > 0) - int(g.difference.high < 0) for g in measured if g.difference]
    if not any(signs):
        return f"At equal KL no difference was shown between {ours} and {theirs} (KL {_between(measured)})."
    parts = []
    for sign, name in ((1, ours), (-1, theirs)):
        ahead = [gap for gap, s in zip(measured, signs, strict=True) if s == sign]
        if ahead:
            middle = ahead[len(ahead) // 2]
            assert middle.difference is not None
            gap = middle.difference if sign == 1 else _negative(middle.difference)
            parts.append(f"{name} ahead {_range(ahead, measured)} ({points_of_percent(gap)} at KL {_kl(middle.kl)})")
    even = [gap for gap, s in zip(measured, signs, strict=True) if s == 0]
    parts += [f"no difference shown {_range(even, measured)}"] if even else []
    return f"{ours} and {theirs} at equal KL: {'; '.join(parts)}."


def _negative(interval: Interval) -> Interval:
    return Interval(value=-interval.value, low=-interval.high, high=-interval.low)


def _range(part: Sequence[KlGap], measured: Sequence[KlGap]) -> str:
    """Describe where `part` lies among the measured KLs, such as "at KL < 5"."""
    if len(part) == len(measured):
        all_kls = _between(measured)
        return f"at every KL measured for both, {all_kls}" if len(measured) > 1 else f"at KL {all_kls}"
    low, high = part[0].kl, part[-1].kl
    indices = [measured.index(gap) for gap in part]
    if indices == list(range(len(part))):
        return f"at KL < {_kl(measured[len(part)].kl)}"
    if indices == list(range(len(measured) - len(part), len(measured))):
        return f"at KL ≥ {_kl(low)}"
    if np.ptp(indices) == len(indices) - 1:
        return f"at KL {_kl(low)} to {_kl(high)}"
    return f"at some KL between {_kl(low)} and {_kl(high)}"


def _between(measured: Sequence[KlGap]) -> str:
    ends = dict.fromkeys(_kl(gap.kl) for gap in (measured[0], measured[-1]))
    return " to ".join(ends)


def _kl(value: float) -> str:
    return f"{value:.2g}"
