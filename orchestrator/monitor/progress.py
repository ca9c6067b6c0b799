"""Where a run stands: the state that both consoles show, and its arithmetic."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from orchestrator.monitor.monitor import RunInfo
from workers.types import Metrics, Sample

CURVE_LENGTH = 2000  # values kept per metric
RECENT_STEPS = 10  # that the estimate of the remaining time looks at


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
    done: int = 0
    doing: dict[str, Doing] = field(default_factory=dict)
    metrics: Metrics = field(default_factory=dict)
    curves: dict[str, deque[float]] = field(default_factory=dict)
    sample: Sample | None = None
    finished_at: deque[float] = field(default_factory=lambda: deque(maxlen=RECENT_STEPS + 1))

    def __post_init__(self) -> None:
        self.started = self.clock()
        self.done = self.run.first_step
        self.finished_at.append(self.started)
        self.doing = {role: Doing("", self.started) for role in self.run.roles}

    def phase(self, role: str, text: str) -> None:
        now = self.clock()
        before = self.doing.get(role)
        self.doing[role] = Doing(text, now, before.busy_until(now) if before else 0.0)

    def busy_share(self, role: str) -> float:
        """Of the time so far: who waits for whom."""
        return self.doing[role].busy_until(self.clock()) / max(self.elapsed_s, 1e-9)

    def step(self, step: int, metrics: Metrics, samples: Sequence[Sample]) -> None:
        self.done = step
        self.finished_at.append(self.clock())
        self.metrics = {**self.metrics, **metrics}  # an evaluation of an earlier step stays on show
        for name, value in metrics.items():
            self.curves.setdefault(name, deque(maxlen=CURVE_LENGTH)).append(value)
        if samples:
            self.sample = max(samples, key=lambda s: s.reward)

    @property
    def seconds_per_step(self) -> float | None:
        steps = len(self.finished_at) - 1
        return (self.finished_at[-1] - self.finished_at[0]) / steps if steps else None

    @property
    def remaining_s(self) -> float | None:
        pace, total = self.seconds_per_step, self.run.num_steps
        if pace is None or total is None:
            return None
        under_way = self.clock() - self.finished_at[-1]
        return max(0.0, pace * (total - self.done) - min(under_way, pace))

    @property
    def elapsed_s(self) -> float:
        return self.clock() - self.started
