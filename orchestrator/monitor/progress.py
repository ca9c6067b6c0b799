"""Where a run stands: the state that both consoles show, and its arithmetic."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from orchestrator.monitor.monitor import RunInfo
from workers.types import Metrics, Sample

CURVE_LENGTH = 2000  # values kept per metric
RECENT_STEPS = 10  # whose pace the estimate of the remaining time goes by


@dataclass(slots=True)
class Doing:
    """What a role does now (an empty text: nothing), and how long it has been busy before."""

    text: str
    since: float
    busy_s: float = 0.0

    def busy_until(self, now: float) -> float:
        return self.busy_s + (now - self.since if self.text else 0.0)


@dataclass(slots=True)
class Progress:
    """Of one run; changed by the driver, read by the screen."""

    run: RunInfo
    clock: Callable[[], float] = time.monotonic
    started: float = 0.0
    counted_from: float = 0.0  # when the first step began, as far as that shows
    marked: float = 0.0  # when the last step ended
    done: int = 0
    doing: dict[str, Doing] = field(default_factory=dict)
    metrics: Metrics = field(default_factory=dict)
    curves: dict[str, deque[float]] = field(default_factory=dict)
    sample: Sample | None = None
    paces: deque[float] = field(default_factory=lambda: deque(maxlen=RECENT_STEPS))  # seconds

    def __post_init__(self) -> None:
        self.started = self.counted_from = self.marked = self.clock()
        self.done = self.run.first_step
        self.doing = {role: Doing("", self.started) for role in self.run.roles}

    def phase(self, role: str, text: str) -> None:
        now = self.clock()
        before = self.doing.get(role)
        if before is None and not text:
            return
        self.doing[role] = Doing(text, now, before.busy_until(now) if before else 0.0)
        if role not in self.run.roles and not text:
            del self.doing[role]  # the driver's own work comes and goes

    def step(self, step: int, metrics: Metrics, samples: Sequence[Sample]) -> None:
        now = self.clock()
        if not self.metrics:  # what went before was loading
            self.doing = {role: Doing(d.text, now) for role, d in self.doing.items()}
            self.counted_from = now
        if step > self.run.first_step:
            self.paces.append(metrics.get("timing/step", now - self.marked))
        self.done, self.marked = step, now
        self.metrics = {**self.metrics, **metrics}  # an evaluation of an earlier step stays on show
        for name, value in metrics.items():
            self.curves.setdefault(name, deque(maxlen=CURVE_LENGTH)).append(value)
        if samples:
            self.sample = max(samples, key=lambda s: s.reward)

    def busy_share(self, role: str) -> float:
        """Of the time since the first step: who waits for whom."""
        now = self.clock()
        return min(1.0, self.doing[role].busy_until(now) / max(now - self.counted_from, 1e-9))

    @property
    def seconds_per_step(self) -> float | None:
        return sum(self.paces) / len(self.paces) if self.paces else None

    @property
    def remaining_s(self) -> float | None:
        pace, total = self.seconds_per_step, self.run.num_steps
        if pace is None or total is None:
            return None
        under_way = min(self.clock() - self.marked, pace)
        return max(0.0, pace * (total - self.done) - under_way)

    @property
    def elapsed_s(self) -> float:
        return self.clock() - self.started
