"""Monitor of a run: forwards everything the driver reports to every sink."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

from orchestrator.config.run import RunConfig
from orchestrator.monitor.alarms import Alarm, AlarmMonitor
from orchestrator.monitor.base import Outcome, RunInfo, Sink
from orchestrator.monitor.console import open_console
from orchestrator.monitor.metrics import MetricsFile, UpdatesFile
from orchestrator.monitor.phase import Phases
from orchestrator.monitor.progress_file import ProgressFile
from orchestrator.monitor.sinks import JsonlSink, WandbSink
from orchestrator.rundir.directory import RunDirectory
from workers.stats import Metrics
from workers.types import Sample


class Monitor:
    """Distributor to the sinks, in their order. The metrics file comes first: its failure stops the run.

    `alarm_monitor`, once the driver has set it, receives every row before the sinks do. Active alarms are added to the
    row, and each alarm that begins is sent to the sinks.
    """

    def __init__(self, sinks: Sequence[Sink], clock: Callable[[], float] = time.monotonic) -> None:
        self._sinks, self._clock = tuple(sinks), clock
        self._phases = Phases()
        self.alarm_monitor: AlarmMonitor | None = None

    def start(self, run: RunInfo) -> None:
        for sink in self._sinks:
            sink.start(run)

    def phase(self, role: str, text: str) -> None:
        if text:
            self._phases.begin(role, self._clock())
        for sink in self._sinks:
            sink.phase(role, text)

    def advance(self, role: str, *, step: int, done: int, total: int, unit: str, recalled: int = 0) -> None:
        """Report how much of a role's work on a step is done.

        Args:
            done: number of units done so far; 0: the work begins.
            unit: what is counted, in the plural: "prompts", "updates".
            recalled: part of `done` that an earlier attempt did.
        """
        now = self._clock()
        phase = self._phases.advance(role, now, step=step, done=done, total=total, unit=unit, recalled=recalled)
        for sink in self._sinks:
            sink.advance(phase)

    def update(self, step: int, update: int, metrics: Metrics) -> None:
        new = self.alarm_monitor.after_update(step, metrics) if self.alarm_monitor is not None else []
        for sink in self._sinks:
            sink.update(step, update, metrics)
        self._report(new)

    def step(self, step: int, metrics: Metrics, samples: Sequence[Sample] = ()) -> None:
        active, new = self.alarm_monitor.update(step, metrics) if self.alarm_monitor is not None else ({}, [])
        for sink in self._sinks:
            sink.step(step, {**metrics, **active}, samples)
        self._phases.end(step)
        self._report(new)

    def _report(self, alarms: Sequence[Alarm]) -> None:
        for alarm in alarms:
            for sink in self._sinks:
                sink.alarm(alarm)

    def note(self, text: str) -> None:
        for sink in self._sinks:
            sink.note(text)

    def close(self, outcome: Outcome) -> None:
        for sink in self._sinks:
            sink.close(outcome)


def open_monitor(config: RunConfig, directory: RunDirectory) -> Monitor:
    """Open the sinks of a run: always the metrics and progress files and a console, Weights & Biases on request."""
    console = open_console()
    sinks: list[Sink] = [
        JsonlSink(MetricsFile(directory.metrics), UpdatesFile(directory.updates)),
        ProgressFile(directory.progress),
    ]
    if "wandb" in config.report_to:
        sinks.append(WandbSink(config.wandb, notify=console.note))
    return Monitor([*sinks, console])
