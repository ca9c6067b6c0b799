"""Win rate over the sampling temperature: how a method's answers fare when they are sampled hotter or colder.

The opponent is the same at every temperature: the base model at temperature 1. The base itself is a curve as well.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from orchestrator.compare.frontier import Point, beats, beats_base, mean_over
from orchestrator.compare.run_curves import TaskRuns
from orchestrator.evaluation.statistics import Interval

BASE = "the base"


@dataclass(frozen=True, kw_only=True, slots=True)
class TemperaturePoint:
    """Win rate over the base at temperature 1 of answers that are sampled at `temperature`; 0 is greedy."""

    method: str
    setting: str
    temperature: float
    win: Interval


def temperature_points(runs: TaskRuns, best: Sequence[Point], *, seed: int = 0) -> list[TemperaturePoint]:
    """Return the points of the base and of one setting of each method at its end, by rising temperature.

    Empty if the runs did not sample at other temperatures. `best`: the point of each method that represents it.
    """
    if not runs.base_by_temperature:
        return []
    points = []
    for point in best:
        curves = [curve for curve in runs.of(point.method)[point.setting] if curve.is_trained]
        if not curves:
            continue
        ends = [curve.evals[-1] for curve in curves]
        for temperature in sorted({1.0, *set.intersection(*({*end.by_temperature} for end in ends))}):
            wins = [
                beats_base(end, runs) if temperature == 1.0 else beats(end.by_temperature[temperature], runs.base)
                for end in ends
            ]
            win = mean_over(np.stack(wins), seed=seed)
            points.append(
                TemperaturePoint(method=point.method, setting=point.setting, temperature=temperature, win=win)
            )
    for temperature, gold in sorted({**runs.base_by_temperature, 1.0: runs.base}.items()):
        win = mean_over(beats(gold, runs.base)[None], seed=seed)
        points.append(TemperaturePoint(method=BASE, setting="", temperature=temperature, win=win))
    return points
