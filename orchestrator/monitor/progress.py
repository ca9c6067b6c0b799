"""Progress of a run: the state that both consoles show, and the estimate of the remaining time."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from orchestrator.monitor.base import RunInfo
from orchestrator.monitor.phase import Phase
from workers.stats import Metrics
from workers.types import Sample

CURVE_LENGTH = 2000  # values kept per metric
RECENT_STEPS = 10  # steps whose mean duration gives the estimate of the remaining time


@dataclass(slots=True)
class Activity:
    """Current work of a role, and its busy time before that."""

    text: str  # empty: idle
    since: float
    busy_s: float = 0.0  # seconds before `since`

    def busy_until(self, now: float) -> float:
        return self.busy_s + (now - self.since if self.text else 0.0)


@dataclass(slots=True)
class Progress:
    """Progress of one run: updated by the driver, read by the screen."""

    run: RunInfo
    clock: Callable[[], float] = time.monotonic
    started: float = 0.0
    counted_from: float = 0.0  # start of the busy shares: about when the first step began
    marked: float = 0.0  # when the last step ended
    done: int = 0  # completed steps
    activities: dict[str, Activity] = field(default_factory=dict)  # by role
    phases: dict[str, Phase] = field(default_factory=dict)  # by role: counted work, unfinished
    metrics: Metrics = field(default_factory=dict)
    curves: dict[str, deque[float]] = field(default_factory=dict)
    sample: Sample | None = None
    durations: deque[float] = field(default_factory=lambda: deque(maxlen=RECENT_STEPS))  # seconds per step

    def __post_init__(self) -> None:
        self.started = self.counted_from = self.marked = self.clock()
        self.done = self.run.first_step
        self.activities = {role: Activity("", self.started) for role in self.run.roles}

    def phase(self, role: str, text: str) -> None:
        now = self.clock()
        self.phases.pop(role, None)
        before = self.activities.get(role)
        if before is None and not text:
            return
        self.activities[role] = Activity(text, now, before.busy_until(now) if before else 0.0)
        if role not in self.run.roles and not text:
            del self.activities[role]  # the driver is listed only while it works

    def advance(self, phase: Phase) -> None:
        """Record counted work. A role whose work on the step is done is idle until it reports again."""
        activity = self.activities.get(phase.role)
        if phase.is_done:
            self.phase(phase.role, "")
            return
        if activity is None or not activity.text:
            self.phase(phase.role, f"{self.run.step_word} {phase.step}")
        self.phases[phase.role] = phase

    def step(self, step: int, metrics: Metrics, samples: Sequence[Sample]) -> None:
        now = self.clock()
        if not self.metrics:  # time before the first row is loading time, not busy time
            self.activities = {role: Activity(a.text, now) for role, a in self.activities.items()}
            self.counted_from = now
        if step > self.run.first_step:
            self.durations.append(metrics.get("timing/step", now - self.marked))
        self.done, self.marked = step, now
        self.metrics = {**self.metrics, **metrics}  # metrics of an earlier evaluation stay visible
        for name, value in metrics.items():
            self.curves.setdefault(name, deque(maxlen=CURVE_LENGTH)).append(value)
        if samples:
            self.sample = max(samples, key=lambda s: s.reward)

    def busy_share(self, role: str) -> float:
        """Return the share of the time since the first step in which `role` was busy."""
        now = self.clock()
        return min(1.0, self.activities[role].busy_until(now) / max(now - self.counted_from, 1e-9))

    @property
    def seconds_per_step(self) -> float | None:
        return sum(self.durations) / len(self.durations) if self.durations else None

    @property
    def remaining_s(self) -> float | None:
        step_s, total = self.seconds_per_step, self.run.num_steps
        if step_s is None or total is None:
            return None
        current_step_s = min(self.clock() - self.marked, step_s)
        return max(0.0, step_s * (total - self.done) - current_step_s)

    @property
    def elapsed_s(self) -> float:
        return self.clock() - self.started
