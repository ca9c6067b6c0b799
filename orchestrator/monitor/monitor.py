"""Monitor of a run: forwards everything the driver reports to every sink."""

from __future__ import annotations

from collections.abc import Sequence

from orchestrator.config.run import RunConfig
from orchestrator.monitor.alarms import AlarmMonitor
from orchestrator.monitor.base import Outcome, RunInfo, Sink
from orchestrator.monitor.console import open_console
from orchestrator.monitor.metrics import MetricsFile
from orchestrator.monitor.sinks import JsonlSink, WandbSink
from orchestrator.rundir.directory import RunDirectory
from workers.types import Metrics, Sample


class Monitor:
    """Distributor to the sinks, in their order. The metrics file comes first: its failure stops the run.

    `alarm_monitor`, once the driver has set it, receives every row before the sinks do. Active alarms are added to the
    row, and an alarm that begins is sent to the sinks as a note.
    """

    def __init__(self, sinks: Sequence[Sink]) -> None:
        self._sinks = tuple(sinks)
        self.alarm_monitor: AlarmMonitor | None = None

    def start(self, run: RunInfo) -> None:
        for sink in self._sinks:
            sink.start(run)

    def phase(self, role: str, text: str) -> None:
        for sink in self._sinks:
            sink.phase(role, text)

    def step(self, step: int, metrics: Metrics, samples: Sequence[Sample] = ()) -> None:
        active, new = self.alarm_monitor.update(step, metrics) if self.alarm_monitor is not None else ({}, [])
        for sink in self._sinks:
            sink.step(step, {**metrics, **active}, samples)
        for alarm in new:
            self.note(str(alarm))

    def note(self, text: str) -> None:
        for sink in self._sinks:
            sink.note(text)

    def close(self, outcome: Outcome) -> None:
        for sink in self._sinks:
            sink.close(outcome)


def open_monitor(config: RunConfig, directory: RunDirectory) -> Monitor:
    """Open the sinks of a run: always the metrics file and a console, Weights & Biases on request."""
    console = open_console()
    sinks: list[Sink] = [JsonlSink(MetricsFile(directory.metrics))]
    if "wandb" in config.report_to:
        sinks.append(WandbSink(config.wandb, notify=console.note))
    return Monitor([*sinks, console])
