"""Types shared by the monitor and its sinks: the run, its outcome, and the base class of sinks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from orchestrator.monitor.alarms import Alarm
from orchestrator.monitor.phase import Phase
from workers.stats import Metrics
from workers.types import Sample


@dataclass(frozen=True, kw_only=True, slots=True)
class RunInfo:
    """Description of a run, given to every sink at the start.

    Example: `RunInfo(name="arith-grpo", kind="grpo", model="models/arith", directory=Path("runs/arith-grpo"),
    num_steps=40, roles=("rollout", "reward", "policy"))`.
    """

    name: str
    kind: str  # algorithm.type of the recipe, such as sft, grpo, ppo or dpo; iter_dpo for iterative DPO
    model: str
    directory: Path
    num_steps: int | None  # None: unknown
    roles: tuple[str, ...] = ()
    first_step: int = 0  # number of steps completed by earlier attempts
    attempt: int = 1
    stage: int = 1
    num_stages: int = 1
    step_word: str = "step"  # "round" for iterative DPO
    config: Mapping[str, Any] = field(default_factory=dict)  # resolved config


@dataclass(frozen=True, kw_only=True, slots=True)
class Outcome:
    """End of a run, and what to do next.

    Example: `Outcome(ok=True, message="done: 40 steps in 2:10", hints=("model: runs/arith-grpo/model",))`.
    """

    ok: bool
    message: str
    hints: tuple[str, ...] = ()


class Sink:
    """Receiver of everything a run reports. Reports that it does not override are ignored.

    An optional sink handles its own failures.
    """

    def start(self, run: RunInfo) -> None:
        """Report that the run starts, or that another attempt resumes it."""

    def phase(self, role: str, text: str) -> None:
        """Report what a role is doing. An empty text means that it is idle."""

    def advance(self, phase: Phase) -> None:
        """Report how much of a role's work on a step is done."""

    def update(self, step: int, update: int, metrics: Metrics) -> None:
        """Report an optimiser update of `step`. `update` counts those of the whole run from 1."""

    def step(self, step: int, metrics: Metrics, samples: Sequence[Sample]) -> None:
        """Report a step that is complete. `samples`: some of its completions."""

    def alarm(self, alarm: Alarm) -> None:
        """Report an alarm that begins."""

    def note(self, text: str) -> None:
        """Report anything else that a person should read."""

    def close(self, outcome: Outcome) -> None:
        """Report how the attempt ended. Nothing is reported after it."""
