"""The series of a run, as the alarms look at them."""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np

from orchestrator.config.alarms import AlarmRule, LevelRule
from orchestrator.monitor.trends import CERTAIN, Values, difference

STEP_WINDOW, ROUND_WINDOW = 20, 4
STEP_LEVEL, ROUND_LEVEL = 5, 3
LOOKED_AT = frozenset(
    {
        "loss", "logps/chosen", "rewards/chosen", "objective/kl", "completions/mean_length",
        "completions/repeated_tail", "pairs/chosen_length", "pairs/rejected_length", "reward", "entropy",
        "frac_reward_zero_std", "sampling/logp_difference", "staleness/mean", "drift/saturated", "ref/refreshed",
        "grad_norm",
    }
)  # fmt: skip


class History:
    """The series of a run, by metric: the steps at which it was told, and its values. What no rule looks at is left
    out, and so is what is not a number."""

    def __init__(self, *, rounds: bool = False) -> None:
        self.rounds = rounds  # a row is a round: there are few of them, each of thousands of completions
        self._steps: dict[str, list[int]] = {}
        self._values: dict[str, list[float]] = {}

    def add(self, step: int, metrics: Mapping[str, float | None]) -> None:
        for name, value in metrics.items():
            if not (name in LOOKED_AT or name.startswith(("eval/", "rewards/"))):
                continue
            if value is not None and math.isfinite(value):
                self._steps.setdefault(name, []).append(step)
                self._values.setdefault(name, []).append(value)

    def names(self) -> list[str]:
        return sorted(self._values)

    def values(self, name: str) -> Values:
        return np.asarray(self._values.get(name, ()), np.float64)

    def steps(self, name: str) -> list[int]:
        return self._steps.get(name, [])

    def last(self, name: str, count: int) -> Values | None:
        """The newest `count` values; None while there are fewer."""
        found = self._values.get(name, ())
        return np.asarray(found[-count:], np.float64) if len(found) >= count else None

    def first(self, name: str, count: int) -> Values:
        """The `count` values the run began with; half of them all where there are fewer than two windows."""
        found = self._values.get(name, ())
        return np.asarray(found[: max(2, min(count, len(found) // 2))], np.float64)

    @property
    def turns(self) -> str:
        """What rows are to a reader: "steps"."""
        return "rounds" if self.rounds else "steps"

    def window(self, rule: AlarmRule) -> int:
        if rule.window is not None:
            return rule.window
        if isinstance(rule, LevelRule):
            return ROUND_LEVEL if self.rounds else STEP_LEVEL
        return ROUND_WINDOW if self.rounds else STEP_WINDOW

    def improved(self, name: str, count: int) -> bool:
        """Whether the newest rows are certainly above the first ones, and not certainly below the best ones."""
        values = self.values(name)
        count = min(count, len(values) // 2)
        if count < 2:
            return False
        best = max((values[i : i + count] for i in range(0, len(values) - count + 1, count)), key=np.mean)
        newest = values[-count:]
        return difference(values[:count], newest) >= CERTAIN and difference(best, newest) > -CERTAIN
