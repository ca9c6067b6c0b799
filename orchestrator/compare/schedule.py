"""Run several commands at a time, as many as their devices allow, without two of them training one earlier stage.

waiting ──starts──► running (a process group of its own) ──► ended
   ▲                   │
   └── devices taken, or an earlier stage of its recipe being trained
"""

from __future__ import annotations

import math
import subprocess
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from orchestrator.signals import ForwardedSignals

POLL_S = 0.1


@dataclass(frozen=True, kw_only=True, slots=True)
class Stage:
    """Stage of a run: where it writes its results, and the devices that it reserves."""

    directory: Path
    devices: float
    is_complete: Callable[[], bool]


@dataclass(frozen=True, kw_only=True, slots=True)
class Job:
    """A command to run once. Its output is appended to `log`."""

    command: Sequence[str]
    log: Path
    stages: tuple[Stage, ...]  # in order; earlier ones may be shared with other jobs

    @property
    def pending(self) -> list[Stage]:
        """Stages that are not complete; the last one always counts."""
        return [*(stage for stage in self.stages[:-1] if not stage.is_complete()), self.stages[-1]]

    @property
    def devices(self) -> float:
        """Devices of the largest stage that is still to be run."""
        return max(stage.devices for stage in self.pending)


@dataclass(kw_only=True, slots=True)
class Scheduler:
    """Runner of jobs. Each runs in a process group of its own, and is asked to stop when this process is."""

    devices: float = math.inf  # to share among the jobs
    most: float = math.inf  # jobs at a time
    started: Callable[[int], None] = lambda _: None  # called with the index of a job
    ended: Callable[[int, int], None] = lambda _, __: None  # called with the index of a job and its exit code
    _running: dict[int, tuple[Job, subprocess.Popen[bytes]]] = field(default_factory=dict)
    _signals: ForwardedSignals = field(init=False)

    def __post_init__(self) -> None:
        self._signals = ForwardedSignals(lambda: [child for _, child in self._running.values()])

    @property
    def stopped_by(self) -> str | None:
        """Name of the signal that asked this process to stop; None if there was none."""
        return self._signals.received

    def run(self, jobs: Sequence[Job]) -> None:
        """Run all jobs, in order where their devices allow; after a signal, only wait for those that run.

        A job that needs more devices than there are runs alone, so that it reports what is missing.
        """
        waiting = dict(enumerate(jobs))
        with self._signals:
            while self._running or (waiting and self.stopped_by is None):
                next_job = next((i for i, job in waiting.items() if self._may_start(job)), None)
                if next_job is not None:
                    self._start(next_job, waiting.pop(next_job))
                else:
                    self._collect()
                    time.sleep(POLL_S)

    def _may_start(self, job: Job) -> bool:
        others = [other for other, _ in self._running.values()]
        if len(others) >= self.most or self.stopped_by is not None:
            return False
        taken = sum(other.devices for other in others)
        if others and taken + job.devices > self.devices:
            return False
        trained = {stage.directory for other in others for stage in other.pending}
        return trained.isdisjoint(stage.directory for stage in job.pending)

    def _start(self, i: int, job: Job) -> None:
        with job.log.open("ab") as output:
            child = subprocess.Popen(job.command, process_group=0, stdout=output, stderr=subprocess.STDOUT)
        self._running[i] = (job, child)
        self._signals.catch_up(child)
        self.started(i)

    def _collect(self) -> None:
        for i, (_, child) in list(self._running.items()):
            if (code := child.poll()) is not None:
                del self._running[i]
                self.ended(i, code if code >= 0 else 128 - code)
