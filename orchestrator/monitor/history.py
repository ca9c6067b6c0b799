"""Series of a run's metrics, as the alarm rules read them."""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np

from orchestrator.config.alarms import AlarmRule, LevelRule
from orchestrator.monitor.trends import CERTAIN, Values, difference

STEP_WINDOW, ROUND_WINDOW = 20, 4
STEP_LEVEL, ROUND_LEVEL = 5, 3
RECORDED = frozenset(
    {
        "loss", "logps/chosen", "rewards/chosen", "objective/kl", "completions/mean_length",
        "completions/repeated_tail", "pairs/chosen_length", "pairs/rejected_length", "reward", "entropy",
        "frac_reward_zero_std", "sampling/logp_difference", "staleness/mean", "drift/saturated", "ref/refreshed",
        "grad_norm",
    }
)  # fmt: skip


class History:
    """Steps and values of each metric of a run. Metrics that no rule reads are left out, as are non-finite values."""

    def __init__(self, *, rounds: bool = False) -> None:
        self.rounds = rounds  # each row is a round: few rows, each over thousands of completions
        self._steps: dict[str, list[int]] = {}
        self._values: dict[str, list[float]] = {}

    def add(self, step: int, metrics: Mapping[str, float | None]) -> None:
        for name, value in metrics.items():
            if not (name in RECORDED or name.startswith(("eval/", "rewards/"))):
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
        """Return the newest `count` values, or None while there are fewer."""
        values = self._values.get(name, ())
        return np.asarray(values[-count:], np.float64) if len(values) >= count else None

    def first(self, name: str, count: int) -> Values:
        """Return the first `count` values, or the first half if there are fewer than 2 * `count`."""
        values = self._values.get(name, ())
        return np.asarray(values[: max(2, min(count, len(values) // 2))], np.float64)

    @property
    def row_word(self) -> str:
        """Word for several rows: "steps" or "rounds"."""
        return "rounds" if self.rounds else "steps"

    def window(self, rule: AlarmRule) -> int:
        """Return the number of newest rows that a rule judges."""
        if rule.window is not None:
            return rule.window
        if isinstance(rule, LevelRule):
            return ROUND_LEVEL if self.rounds else STEP_LEVEL
        return ROUND_WINDOW if self.rounds else STEP_WINDOW

    def improved(self, name: str, count: int) -> bool:
        """Check that the newest values are certainly above the first ones and not certainly below the best ones."""
        values = self.values(name)
        count = min(count, len(values) // 2)
        if count < 2:
            return False
        best = max((values[i : i + count] for i in range(0, len(values) - count + 1, count)), key=np.mean)
        newest = values[-count:]
        return difference(values[:count], newest) >= CERTAIN and difference(best, newest) > -CERTAIN
