"""A comparison in words, with its uncertainty: who is ahead at equal cost, and at which distance from the base."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np

from orchestrator.compare.frontier import HeadToHead, KlGap, Point, common_cost, gaps, matchup, points_of
from orchestrator.compare.run_curves import AXES, Axis, TaskRuns
from orchestrator.evaluation.statistics import Interval
from orchestrator.report.page import percent


@dataclass(frozen=True, kw_only=True, slots=True)
class Answer:
    """All that a comparison of one task says."""

    task: str
    about: str
    field: TaskRuns
    unit: str  # of a device: GPU or worker
    points: Mapping[str, Sequence[Point]]  # by method
    cost: Mapping[Axis, float]  # at which methods are compared
    matchups: Mapping[Axis, Sequence[HeadToHead]]  # of every two methods, the better one first
    gaps: Mapping[tuple[str, str], Sequence[KlGap]]  # of every two methods, over KL
    order: Sequence[str]  # methods, the best at equal cost first

    @property
    def headline(self) -> str:
        return headline(self)


def answer(field: TaskRuns, *, task: str, about: str, unit: str, seed: int = 0) -> Answer:
    points = {method: points_of(field, method, seed=seed) for method in field.methods}
    cost = {axis: common_cost(field, axis) for axis in AXES}
    matchups: dict[Axis, list[HeadToHead]] = {}
    for axis in AXES:
        if cost[axis] > 0:
            found = [matchup(field, a, b, axis, cost[axis], seed=seed) for a, b in combinations(field.methods, 2)]
            matchups[axis] = [_better_first(d) for d in found if d is not None]
    wins = {m: sum(_share(d, m) for d in matchups.get("device_seconds", ())) for m in field.methods}
    order = sorted(field.methods, key=lambda method: -wins[method])
    return Answer(
        task=task,
        about=about,
        field=field,
        unit=unit,
        points=points,
        cost=cost,
        matchups=matchups,
        gaps={(a, b): gaps(field, a, b, points, seed=seed) for a, b in combinations(order, 2)} if field.kl_of else {},
        order=order,
    )


def _share(matchup: HeadToHead, method: str) -> float:
    return matchup.win.value if matchup.ours == method else 1 - matchup.win.value if matchup.theirs == method else 0.0


def _better_first(found: HeadToHead) -> HeadToHead:
    if found.win.value >= 0.5:
        return found
    win = Interval(value=1 - found.win.value, low=1 - found.win.high, high=1 - found.win.low)
    return HeadToHead(ours=found.theirs, theirs=found.ours, win=win, settings=(found.settings[1], found.settings[0]))


# ------------------------------------------------------------------------------------------------ words


def points_of_percent(interval: Interval) -> str:
    """`Interval(value=0.08, low=0.03, high=0.12)` is "+8 points [+3, +12]"."""
    return f"{100 * interval.value:+.0f} points [{100 * interval.low:+.0f}, {100 * interval.high:+.0f}]"


def spent(answer: Answer, axis: Axis) -> str:
    """Example: "equal compute (150 worker-seconds)"."""
    cost = answer.cost[axis]
    if axis == "device_seconds":
        return f"equal compute ({cost:,.0f} {answer.unit}-seconds)"
    return f"equal time on the clock ({cost:,.0f} s)" if axis == "seconds" else f"equal tokens ({cost:,.0f})"


def headline(answer: Answer) -> str:
    """One sentence: the best method, against the next, at equal compute."""
    matchups = answer.matchups.get("device_seconds", ())
    if not matchups:
        return "Nothing can be said at equal compute: no cost is known at which all methods were evaluated."
    first = answer.order[0]
    own = {d.theirs if d.ours == first else d.ours: d for d in matchups if first in (d.ours, d.theirs)}
    behind = [m for m in answer.order[1:] if m in own and own[m].ours == first and own[m].verdict == 1]
    even = [m for m in answer.order[1:] if m in own and m not in behind]
    at = spent(answer, "device_seconds")
    if not behind:
        shown = "; ".join(f"{first} against {m} {percent(_from(own[m], first))}" for m in even)
        return f"At {at} no difference was shown: {shown}."
    told = ", ".join(f"{percent(own[m].win)} against {m}" for m in behind)
    rest = "; ".join(f"no difference shown to {m} ({percent(_from(own[m], first))})" for m in even)
    return f"{first} ahead at {at}: {told}{'; ' + rest if rest else ''}."


def _from(matchup: HeadToHead, method: str) -> Interval:
    if matchup.ours == method:
        return matchup.win
    return Interval(value=1 - matchup.win.value, low=1 - matchup.win.high, high=1 - matchup.win.low)


def sentences(answer: Answer) -> Iterator[str]:
    """What stands below the headline: the other axes, and what holds at equal KL."""
    for axis in ("seconds", "tokens"):
        ahead = [d for d in answer.matchups.get(axis, ()) if d.verdict == 1]
        if axis in answer.matchups:
            told = "; ".join(f"{d.ours} beats {d.theirs} {percent(d.win)}" for d in ahead) or "no difference was shown"
            yield f"At {spent(answer, axis)}: {told}."
    for (ours, theirs), found in answer.gaps.items():
        yield at_equal_kl(ours, theirs, found)


def at_equal_kl(ours: str, theirs: str, found: Sequence[KlGap]) -> str:
    """Where along the KL one front is shown to be above the other."""
    known = [gap for gap in found if gap.difference is not None]
    if not known:
        return f"At equal KL nothing can be said of {ours} and {theirs}: they were measured at different ones."
    signs = [int(g.difference.low > 0) - int(g.difference.high < 0) for g in known if g.difference]
    reach = f"KL {_between(known)}"
    if not any(signs):
        return f"At equal KL no difference was shown between {ours} and {theirs} ({reach})."
    parts = []
    for sign, name in ((1, ours), (-1, theirs)):
        where = [gap for gap, s in zip(known, signs, strict=True) if s == sign]
        if where:
            at = where[len(where) // 2]
            assert at.difference is not None
            gap = at.difference if sign == 1 else _negative(at.difference)
            parts.append(f"{name} ahead {_range(where, known)} ({points_of_percent(gap)} at KL {_kl(at.kl)})")
    none = [gap for gap, s in zip(known, signs, strict=True) if s == 0]
    parts += [f"no difference shown {_range(none, known)}"] if none else []
    return f"{ours} and {theirs} at equal KL: {'; '.join(parts)}."


def _negative(interval: Interval) -> Interval:
    return Interval(value=-interval.value, low=-interval.high, high=-interval.low)


def _range(where: Sequence[KlGap], known: Sequence[KlGap]) -> str:
    """Example: "at KL < 5"; the KLs that were looked at lie close to each other."""
    if len(where) == len(known):
        return f"at every KL that both have, {_between(known)}" if len(known) > 1 else f"at KL {_between(known)}"
    low, high = where[0].kl, where[-1].kl
    indices = [known.index(gap) for gap in where]
    if indices == list(range(len(where))):
        return f"at KL < {_kl(known[len(where)].kl)}"
    if indices == list(range(len(known) - len(where), len(known))):
        return f"at KL ≥ {_kl(low)}"
    if np.ptp(indices) == len(indices) - 1:
        return f"at KL {_kl(low)} to {_kl(high)}"
    return f"at some KL between {_kl(low)} and {_kl(high)}"


def _between(known: Sequence[KlGap]) -> str:
    ends = dict.fromkeys(_kl(gap.kl) for gap in (known[0], known[-1]))
    return " to ".join(ends)


def _kl(value: float) -> str:
    return f"{value:.2g}"
