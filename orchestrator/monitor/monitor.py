"""One thing for the driver to talk to, handing on to every sink."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from orchestrator.config.run import RunConfig
from orchestrator.monitor.alarms import AlarmMonitor
from orchestrator.rundir.directory import RunDirectory
from workers.types import Metrics, Sample


@dataclass(frozen=True, kw_only=True, slots=True)
class RunInfo:
    """What is known of a run when it starts.

    Example: `RunInfo(name="arith-grpo", kind="grpo", model="models/arith", directory=Path("runs/arith-grpo"),
    num_steps=40, roles=("rollout", "reward", "policy"))`.
    """

    name: str
    kind: str  # sft, grpo, ppo, dpo, iter_dpo
    model: str
    directory: Path
    num_steps: int | None  # None: not known
    roles: tuple[str, ...] = ()
    first_step: int = 0  # steps that earlier attempts have done
    attempt: int = 1
    stage: int = 1
    num_stages: int = 1
    step_word: str = "step"  # "round" for iterative DPO
    config: Mapping[str, Any] = field(default_factory=dict)  # resolved


@dataclass(frozen=True, kw_only=True, slots=True)
class Outcome:
    """How a run ended, and what to do next.

    Example: `Outcome(ok=True, message="done: 40 steps in 2:10", hints=("model: runs/arith-grpo/model",))`.
    """

    ok: bool
    message: str
    hints: tuple[str, ...] = ()


class Sink(Protocol):
    """Where the news goes. A sink that is optional keeps its own failures to itself."""

    def start(self, run: RunInfo) -> None: ...

    def phase(self, role: str, text: str) -> None:
        """What a role is doing now; an empty text: nothing."""

    def step(self, step: int, metrics: Metrics, samples: Sequence[Sample]) -> None: ...

    def note(self, text: str) -> None: ...

    def close(self, outcome: Outcome) -> None: ...


class Monitor:
    """Fans out to its sinks, in their order. The metrics file is first: its failure stops the run.

    `alarm_monitor`, when the driver has given one, sees every row first: its alarms are in the row, and noted.
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
        ringing, begun = self.alarm_monitor.update(step, metrics) if self.alarm_monitor is not None else ({}, [])
        for sink in self._sinks:
            sink.step(step, {**metrics, **ringing}, samples)
        for alarm in begun:
            self.note(str(alarm))

    def note(self, text: str) -> None:
        for sink in self._sinks:
            sink.note(text)

    def close(self, outcome: Outcome) -> None:
        for sink in self._sinks:
            sink.close(outcome)


def open_monitor(config: RunConfig, directory: RunDirectory) -> Monitor:
    """The sinks of this run: always the metrics file and a console, Weights & Biases on request."""
    from orchestrator.monitor.console import open_console
    from orchestrator.monitor.metrics import MetricsFile
    from orchestrator.monitor.sinks import JsonlSink, WandbSink

    console = open_console()
    sinks: list[Sink] = [JsonlSink(MetricsFile(directory.metrics))]
    if "wandb" in config.report_to:
        sinks.append(WandbSink(config.wandb, notify=console.note))
    return Monitor([*sinks, console])
