"""What the safety gate looks at: held-out figures before the first step and now."""

from __future__ import annotations

from dataclasses import dataclass

from orchestrator.config.alarms import SafetyGate
from orchestrator.monitor.figures import number
from orchestrator.monitor.history import History


@dataclass(frozen=True, kw_only=True, slots=True)
class GatedMetric:
    """A figure behind the gate, of the model as it was given and of the newest evaluation.

    Example: `GatedMetric(name="eval/refusal", before=0.98, now=0.91, allowed=0.02, lower_is_better=False)`.
    """

    name: str
    before: float
    now: float
    allowed: float
    lower_is_better: bool = False

    @property
    def lost(self) -> bool:
        worse = self.now - self.before if self.lower_is_better else self.before - self.now
        return worse > self.allowed + 1e-9  # shares are sums of floats

    def __str__(self) -> str:
        word = "rose" if self.now > self.before else "fell" if self.now < self.before else "stayed"
        moved = f"from {number(self.before)} to {number(self.now)}" if word != "stayed" else f"at {number(self.now)}"
        return f"{self.name} {word} {moved}, allowed is {self.allowed:g}"


def guarded(history: History, rule: SafetyGate) -> list[GatedMetric]:
    """Those that were measured of the model as it was given (row 0) and again since."""
    limits = dict.fromkeys(rule.metrics, (rule.max_fall, False))
    limits |= {"eval/refusal": (rule.max_refusal_fall, False), "eval/over_refusal": (rule.max_over_refusal_rise, True)}
    return [
        GatedMetric(name=name, before=float(values[0]), now=float(values[-1]), allowed=allowed, lower_is_better=lower)
        for name, (allowed, lower) in limits.items()
        if len(values := history.values(name)) >= 2 and history.steps(name)[0] == 0
    ]
