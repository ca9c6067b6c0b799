"""Start of an attempt: find the checkpoint to resume from, record the attempt, restore metrics and alarms.

checkpoints, ledger ──► resume point ──► ATTEMPT ──► metrics rewound ──► alarms
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from orchestrator.config import resolved
from orchestrator.driver.alarm_actions import alarms_of, build_monitor
from orchestrator.driver.assembly import Material, in_rounds, step_word
from orchestrator.driver.checkpoint import newest
from orchestrator.driver.context import AttemptContext
from orchestrator.driver.resume_overrides import record_overrides
from orchestrator.monitor import RunInfo
from orchestrator.monitor.alarms import AlarmMonitor
from orchestrator.monitor.metrics import MetricsFile, UpdatesFile
from orchestrator.pipeline.roles import gang_plans
from orchestrator.rundir.existing import write_inputs
from orchestrator.rundir.ledger import Fact, checkpointed
from orchestrator.rundir.manifest import State, list_checkpoints, read_about
from orchestrator.rundir.provenance import compare, describe


@dataclass(frozen=True, kw_only=True, slots=True)
class ResumePoint:
    """Point of the run at which an attempt starts.

    Example: `ResumePoint(checkpoint=Path("checkpoints/step-12"), state=State(next_step=12, …), about={…})`.
    """

    checkpoint: Path | None  # None: the beginning of the run
    state: State
    about: Mapping[str, Any]  # provenance, for the manifests of this attempt's checkpoints
    remarks: tuple[str, ...] = ()  # damaged checkpoints, and what changed since the previous attempt


def find_resume_point(attempt: AttemptContext, material: Material) -> ResumePoint:
    """Find the newest intact checkpoint, and record the attempt that resumes from it.

    Raises:
        ResumeError: every checkpoint is missing or damaged, the training data have changed, or the ledger does not
            match the checkpoint.
    """
    config, directory, ledger = attempt.config, attempt.directory, attempt.ledger
    expected = checkpointed(ledger.records)
    listed = list_checkpoints(directory.checkpoints)
    resumed = listed or (expected is not None and attempt.stored is None)
    checkpoint, state, damaged = (
        newest(directory.checkpoints, expected, attempt.stored)
        if resumed
        else (None, State(next_step=0, reference_version=0), [])
    )
    about = describe(config, material.sources) | {"attempt": attempt.number}
    differences = compare(read_about(checkpoint), about) if checkpoint else []
    overrides, inputs = record_overrides(directory, config), write_inputs(directory, config)
    attempt.record(
        Fact.attempt,
        step=state.next_step,
        **({"refused": list(damaged)} if damaged else {}),
        **({"changed": overrides} if overrides else {}),
    )
    ledger.refuse_gaps(state.next_step)
    skipped = [f"not used: {damage}; resuming from the checkpoint before it" for damage in damaged]
    remarks = (*skipped, *differences, *inputs)
    return ResumePoint(checkpoint=checkpoint, state=state, about=about, remarks=remarks)


def rewind_metrics(attempt: AttemptContext, point: ResumePoint) -> list[dict[str, Any]]:
    """Remove the rows after the resume point from the metrics files, and return the others of metrics.jsonl."""
    metrics, state = MetricsFile(attempt.directory.metrics), point.state
    metrics.rewind(state.next_step if point.checkpoint else -1)
    UpdatesFile(attempt.directory.updates).rewind(state.next_step, state.updates)
    return metrics.rows()


def restore_alarms(attempt: AttemptContext, rows: list[dict[str, Any]]) -> AlarmMonitor:
    """Restore the alarms of earlier attempts from `rows` and their updates; the attempt's monitor updates them.

    Raises:
        ResumeError: an alarm has stopped the run for good.
    """
    config = attempt.config
    updates = UpdatesFile(attempt.directory.updates).rows()
    alarms = build_monitor(alarms_of(config), attempt.ledger, rows, updates, rounds=in_rounds(config))
    attempt.monitor.alarm_monitor = alarms
    return alarms


def run_info(attempt: AttemptContext, point: ResumePoint, stage: tuple[int, int], *, max_steps: int) -> RunInfo:
    """Return the description of the run for the monitor. `stage`: number of the stage, and number of stages."""
    config = attempt.config
    return RunInfo(
        name=config.name,
        kind="iter_dpo" if in_rounds(config) else config.algorithm.type,
        model=config.model.path or "",
        directory=attempt.directory.path,
        num_steps=max_steps,
        roles=tuple(plan.role for plan in gang_plans(config, cuda=False, max_steps=max_steps)),
        first_step=point.state.next_step,
        attempt=attempt.number,
        stage=stage[0],
        num_stages=stage[1],
        step_word=step_word(config),
        config=resolved(config),
    )
