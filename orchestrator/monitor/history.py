"""Series of a run's metrics, by step and by optimiser update, as the alarm rules read them."""

from __future__ import annotations

import bisect
import math
from collections.abc import Mapping

import numpy as np

from orchestrator.config.alarms import AlarmRule, LevelRule
from orchestrator.monitor.trends import CERTAIN, Level, Values, change

WINDOW, LEVEL = 20, 5
ROUNDS = 3  # rounds that are judged together where a metric comes without its standard error
RECORDED = frozenset(
    {
        "objective/kl", "objective/entropy", "completions/mean_length", "completions/repeated_tail",
        "pairs/chosen_length", "pairs/rejected_length", "pairs/length_gap", "reward", "entropy", "frac_reward_zero_std",
        "sampling/logp_difference", "staleness/mean", "drift/kl", "drift/saturated", "drift/spread", "ref/refreshed",
    }
)  # fmt: skip
OF_UPDATES = frozenset({"loss", "logps/chosen", "rewards/chosen", "grad_norm"})


class Series:
    """Steps and values of each metric, in the order of their rows. Values that are not finite are left out."""

    def __init__(self) -> None:
        self._steps: dict[str, list[int]] = {}
        self._values: dict[str, list[float]] = {}

    def add(self, step: int, name: str, value: float | None) -> None:
        if value is not None and math.isfinite(value):
            self._steps.setdefault(name, []).append(step)
            self._values.setdefault(name, []).append(value)

    def names(self) -> list[str]:
        return sorted(self._values)

    def values(self, name: str) -> Values:
        return np.asarray(self._values.get(name, ()), np.float64)

    def steps(self, name: str) -> list[int]:
        return self._steps.get(name, [])

    def count(self, name: str) -> int:
        return len(self._values.get(name, ()))

    def at(self, name: str, step: int) -> float | None:
        """Return the value in the row of `step`; None if the row has none."""
        steps = self.steps(name)
        i = bisect.bisect_left(steps, step)
        return self._values[name][i] if i < len(steps) and steps[i] == step else None

    def last(self, name: str, count: int) -> Values | None:
        """Return the newest `count` values, or None while there are fewer."""
        values = self._values.get(name, ())
        return np.asarray(values[-count:], np.float64) if len(values) >= count else None

    def first(self, name: str, count: int) -> Values:
        """Return the first `count` values, or the first half if there are fewer than 2 * `count`."""
        values = self._values.get(name, ())
        return np.asarray(values[: max(2, min(count, len(values) // 2))], np.float64)

    def count_since(self, name: str, step: int) -> int:
        """Return the number of values in the rows from `step` on."""
        return self.count(name) - bisect.bisect_left(self.steps(name), step)


class History(Series):
    """Metrics of a run by step, and by optimiser update as `updates`. Metrics that no rule reads are left out."""

    def __init__(self, *, rounds: bool = False) -> None:
        super().__init__()
        self.rounds = rounds  # each row is a round: few rows, each over thousands of completions
        self.updates = Series()
        self.step_of_update: list[int] = []

    def add_row(self, step: int, metrics: Mapping[str, float | None]) -> None:
        for name, value in metrics.items():
            if name.removesuffix("_error") in RECORDED or name.startswith(("eval/", "rewards/")):
                self.add(step, name, value)

    def add_update(self, step: int, metrics: Mapping[str, float | None]) -> None:
        self.step_of_update.append(step)
        for name in OF_UPDATES & metrics.keys():
            self.updates.add(step, name, metrics[name])

    @property
    def row_word(self) -> str:
        """Word for several rows: "steps" or "rounds"."""
        return "rounds" if self.rounds else "steps"

    def count_updates(self, name: str) -> int:
        """Return the number of updates among which a trend is looked for: those of the round, or of the run."""
        if self.rounds and self.step_of_update:
            return self.updates.count_since(name, self.step_of_update[-1])
        return self.updates.count(name)

    def window(self, rule: AlarmRule, name: str = "") -> int:
        """Return the number of newest rows that a rule judges: one if it is a round with the standard error of `name`.

        For rules on updates it is the number of updates.
        """
        if rule.window is not None:
            return rule.window
        if self.rounds and name:
            return 1 if self.count(f"{name}_error") else ROUNDS
        return LEVEL if isinstance(rule, LevelRule) else WINDOW

    def level(self, name: str, rule: AlarmRule) -> Level | None:
        """Return the level of the newest rows, or None while there are too few."""
        n = self.window(rule, name)
        return self._level(name, self.count(name) - n, n)

    def first_level(self, name: str, rule: AlarmRule) -> Level | None:
        """Return the level of the first rows, or None while they overlap with the newest ones."""
        n = self.window(rule, name)
        return self._level(name, 0, n) if self.count(name) >= 2 * n else None

    def _level(self, name: str, start: int, count: int) -> Level | None:
        if count < 1 or start < 0 or start + count > self.count(name):
            return None
        values = self.values(name)[start : start + count]
        if count > 1:
            return Level.of(values)
        return self.row_level(name, self.steps(name)[start])

    def row_level(self, name: str, step: int) -> Level | None:
        """Return the level of a single row, or None if it lacks the metric or its standard error."""
        value, error = self.at(name, step), self.at(f"{name}_error", step)
        return None if value is None or error is None else Level.of_row(value, error)

    def improved(self, name: str, rule: AlarmRule) -> bool:
        """Check that the newest level is certainly above the first one and not certainly below the best one."""
        n = min(self.window(rule, name), self.count(name) // 2)
        levels = [self._level(name, i, n) for i in range(0, self.count(name) - n + 1, max(n, 1))]
        found = [level for level in levels if level is not None]
        newest = self._level(name, self.count(name) - n, n)
        if newest is None or len(found) < 2:
            return False
        best = max(found, key=lambda level: level.mean)
        return change(found[0], newest) >= CERTAIN and change(best, newest) > -CERTAIN
