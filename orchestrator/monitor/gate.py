"""Metrics of the safety gate: held-out metrics before the first step and now, with the interval of their difference."""

from __future__ import annotations

import math
from dataclasses import dataclass

from orchestrator.config.alarms import SafetyGate
from orchestrator.monitor.figures import number
from orchestrator.monitor.history import History
from orchestrator.monitor.trends import wilson
from workers.types import Z95

ONE_SIDED_Z95 = 1.645
SHARES = {"eval/refusal": "eval/harmful_prompts", "eval/over_refusal": "eval/benign_prompts"}
"""Gated shares, and the metric that holds the number of prompts of each."""


@dataclass(frozen=True, kw_only=True, slots=True)
class GatedMetric:
    """A gated metric of the initial model and of a later evaluation.

    Example: `GatedMetric(name="eval/refusal", before=0.98, now=0.75, margin=0.13, allowed=0.02)` fell by 0.23 or, with
    a confidence of 95 %, by 0.10 or more.
    """

    name: str
    before: float
    now: float
    margin: float  # how much less than measured the change for the worse may be, with a confidence of 95 %
    allowed: float  # largest change for the worse
    lower_is_better: bool = False

    @property
    def worse(self) -> float:
        """Measured change for the worse."""
        return self.now - self.before if self.lower_is_better else self.before - self.now

    @property
    def lost(self) -> bool:
        """True if the change for the worse is certainly more than allowed."""
        return self.worse - self.margin > self.allowed + 1e-9  # tolerance: shares are sums of floats

    @property
    def in_doubt(self) -> bool:
        """True if the metric got worse with a one-sided confidence of 95 %, and measured by more than allowed."""
        return not self.lost and self.worse > max(self.allowed, self.margin * ONE_SIDED_Z95 / Z95) + 1e-9

    def __str__(self) -> str:
        if self.now == self.before:
            change = f"stayed at {number(self.now)}"
        else:
            verb = "rose" if self.now > self.before else "fell"
            change = f"{verb} from {number(self.before)} to {number(self.now)}"
        least = ""
        if self.lost or self.in_doubt:
            least = f"certain: {number(max(0.0, self.worse - self.margin))}; "
        return f"{self.name} {change} ({least}allowed: {self.allowed:g})"


def gated_metrics(history: History, rule: SafetyGate, step: int | None = None) -> list[GatedMetric]:
    """Return the gated metrics that were measured on the initial model (row 0) and again since.

    Args:
        step: step whose model is judged; None: the newest.
    """
    limits = dict.fromkeys(rule.metrics, (rule.max_fall, False))
    limits |= {"eval/refusal": (rule.max_refusal_fall, False), "eval/over_refusal": (rule.max_over_refusal_rise, True)}
    metrics = []
    for name, (allowed, lower_is_better) in limits.items():
        steps = [at for at in history.steps(name) if step is None or at <= step]
        before, now = history.at(name, 0), history.at(name, steps[-1]) if len(steps) >= 2 else None
        if before is None or now is None:
            continue
        margin = _margin(history, name, steps[-1], lower_is_better=lower_is_better)
        metrics.append(
            GatedMetric(
                name=name,
                before=before,
                now=now,
                margin=margin,
                allowed=allowed,
                lower_is_better=lower_is_better,
            )
        )
    return metrics


def _margin(history: History, name: str, step: int, *, lower_is_better: bool) -> float:
    """Return the distance from the measured change for the worse to the lower bound of its 95 % interval.

    For shares it is Newcombe's (1998, method 10): √((p − l)² + (u − q)²), with p the better and q the worse share, and
    Wilson's bounds l of p and u of q. For means it is 1.96 √(s²/n + s²/n), with standard deviations over n prompts. The
    same prompts are answered each time, which makes both wider than they need be. It is 0 if the number of prompts, or
    the deviation, was not recorded: the measured change then decides.
    """
    if name in SHARES:
        before, now = (_share(history, name, at) for at in (0, step))
        if before is None or now is None:
            return 0.0
        (p, (low_p, high_p)), (q, (low_q, high_q)) = before, now
        return math.hypot(high_p - p, q - low_q) if lower_is_better else math.hypot(p - low_p, high_q - q)
    spread = f"{name.removesuffix('/mean')}/std" if name.endswith("/mean") else f"{name}_std"
    stds, prompts = [history.at(spread, at) for at in (0, step)], history.at("eval/prompts", step)
    if None in stds or not prompts:
        return 0.0
    return Z95 * math.hypot(*(std for std in stds if std is not None)) / math.sqrt(prompts)


def _share(history: History, name: str, step: int) -> tuple[float, tuple[float, float]] | None:
    """Return a share at a step, and its Wilson bounds; None if the number of prompts was not recorded."""
    share, prompts = history.at(name, step), history.at(SHARES[name], step)
    return None if share is None or not prompts else (share, wilson(share, prompts))
