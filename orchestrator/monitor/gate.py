"""Metrics of the safety gate: held-out metrics before the first step and now."""

from __future__ import annotations

from dataclasses import dataclass

from orchestrator.config.alarms import SafetyGate
from orchestrator.monitor.figures import number
from orchestrator.monitor.history import History


@dataclass(frozen=True, kw_only=True, slots=True)
class GatedMetric:
    """A gated metric of the initial model and of the newest evaluation.

    Example: `GatedMetric(name="eval/refusal", before=0.98, now=0.91, allowed=0.02, lower_is_better=False)`.
    """

    name: str
    before: float
    now: float
    allowed: float  # largest change for the worse
    lower_is_better: bool = False

    @property
    def lost(self) -> bool:
        worse = self.now - self.before if self.lower_is_better else self.before - self.now
        return worse > self.allowed + 1e-9  # tolerance: shares are sums of floats

    def __str__(self) -> str:
        if self.now == self.before:
            change = f"stayed at {number(self.now)}"
        else:
            verb = "rose" if self.now > self.before else "fell"
            change = f"{verb} from {number(self.before)} to {number(self.now)}"
        return f"{self.name} {change} (allowed: {self.allowed:g})"


def gated_metrics(history: History, rule: SafetyGate) -> list[GatedMetric]:
    """Return the gated metrics that were measured on the initial model (row 0) and again since."""
    limits = dict.fromkeys(rule.metrics, (rule.max_fall, False))
    limits |= {"eval/refusal": (rule.max_refusal_fall, False), "eval/over_refusal": (rule.max_over_refusal_rise, True)}
    return [
        GatedMetric(name=name, before=float(values[0]), now=float(values[-1]), allowed=allowed, lower_is_better=lower)
        for name, (allowed, lower) in limits.items()
        if len(values := history.values(name)) >= 2 and history.steps(name)[0] == 0
    ]
