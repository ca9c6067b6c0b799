"""Execute a comparison, or compare finished runs, and write the report.

    compare.yaml ──► runs, one after another, each in its own process ──► directories ─┐
    runs/A runs/B … ──► methods and settings from differences in their configs ────────┴─► answer ──► report

Complete runs are reused; interrupted runs are resumed.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from orchestrator import disk
from orchestrator.compare.answer import Answer, answer
from orchestrator.compare.page import Section, write_all
from orchestrator.compare.recipe import Comparison, PlannedRun, TaskConfig, disagreements
from orchestrator.compare.run_curves import RunEntry, read_curves
from orchestrator.config.values import show
from orchestrator.driver.supervise import Supervisor, child_command
from orchestrator.errors import BadInput, Interrupted, Problem, Problems
from orchestrator.monitor.figures import duration, number
from orchestrator.report.cost import unit_of
from orchestrator.report.findings import config_differences
from orchestrator.report.page import Card
from orchestrator.report.run_record import RunRecord
from orchestrator.rundir.directory import RunDirectory

Say = Callable[[str], None]
NOT_THE_METHOD = ("seed", "max_device_seconds", "cluster", "checkpoint", "alarms", "policy", "critic", "rollout")
"""Settings in which runs of one method and one setting may differ."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Outcome:
    """Result of a comparison."""

    answers: tuple[Answer, ...]
    files: tuple[Path, ...]
    lost: tuple[str, ...]  # runs that did not complete, each with the reason


def run_comparison(comparison: Comparison, *, say: Say, extra: Sequence[Card] = ()) -> Outcome:
    """Execute the runs that are not complete, and write the report of all complete runs.

    Raises:
        BadInput: if a run of the same name has another config, or no run completed.
        Interrupted: if the process was asked to stop.
    """
    directories = [RunDirectory.create(run.config, run.recipe.text) for run in comparison.runs]
    for i, (run, directory) in enumerate(zip(comparison.runs, directories, strict=True)):
        label = f"{i + 1} of {len(directories)}: {run.task}, {_named(run)}"
        if directory.is_complete:
            say(f"{label}: complete, reused")
        else:
            started = time.monotonic()
            _run(comparison, run, directory, say=say)
            say(f"{label}: {_result(RunRecord.read(directory))}, {duration(time.monotonic() - started)}")
    sections, lost = [], []
    for task in comparison.config.tasks:
        own = [(r, d) for r, d in zip(comparison.runs, directories, strict=True) if r.task == task.name]
        missing = [f"{_named(r)}: {RunRecord.read(d).ended}" for r, d in own if not d.is_complete]
        lost += [f"{task.name}, {line}" for line in missing]
        entries = [
            RunEntry(record=RunRecord.read(d), method=r.method, setting=r.setting) for r, d in own if d.is_complete
        ]
        if entries:
            sections.append(_section(task, entries, missing))
    if not sections:
        fix = f"see the logs in {comparison.config.directory}"
        raise BadInput(Problem(what="no run of the comparison completed", where=str(comparison.source), fix=fix))
    files = write_all(comparison.config.directory, comparison.config.name, sections, extra)
    return Outcome(answers=tuple(s.answer for s in sections), files=tuple(files), lost=tuple(lost))


def _run(comparison: Comparison, run: PlannedRun, directory: RunDirectory, *, say: Say) -> None:
    command = child_command("run", str(run.recipe.source), *run.overrides)
    log = directory.path / "run.log"
    with log.open("ab") as output:
        supervisor = Supervisor(
            command,
            [stage.directory for stage in run.recipe.stages],
            attempts=comparison.config.attempts,
            say=say,
            output=output,
        )
        code = supervisor.run()
    if supervisor.stopped_by is not None:
        raise Interrupted(supervisor.stopped_by, resume=f"rlhf compare {comparison.source}")
    if code != 0:
        say(f"  the run ended with exit code {code}: {log}")


def _named(run: PlannedRun) -> str:
    return f"{' '.join(filter(None, (run.method, run.setting)))}, seed {run.seed}"


def _result(record: RunRecord) -> str:
    curve = record.curve("eval/reward")
    rewards = f"held-out reward {number(curve[0][1])} → {number(curve[-1][1])}, " if curve else ""
    return f"{rewards}{record.meter.device_seconds:,.0f} device-seconds, {record.ended}"


def _section(task: TaskConfig, entries: Sequence[RunEntry], missing: Sequence[str]) -> Section:
    unit = unit_of(entries[0].record)
    result = answer(read_curves(entries, task.gold), task=task.name, about=task.about, unit=unit)
    return Section(answer=result, records=[entry.record for entry in entries], lost=missing)


# ------------------------------------------------------------------------------------------------ finished runs


def compare_runs(directories: Sequence[RunDirectory], *, gold: str | None, output: Path) -> Outcome:
    """Compare finished runs, and write the report into `output`.

    Raises:
        BadInput: if the runs start from different models, or were evaluated on different prompts.
    """
    problems = Problems(disagreements([(d.name, d.config()) for d in directories], "rlhf compare"))
    problems.raise_if_any()
    entries = entries_of([RunRecord.read(directory) for directory in directories])
    disk.make_directory(output)
    task = TaskConfig.model_construct(name=output.name, about="", gold=gold, overrides={}, methods=())
    section = _section(task, entries, ())
    files = write_all(output, output.name, [section])
    return Outcome(answers=(section.answer,), files=tuple(files), lost=())


def entries_of(records: Sequence[RunRecord]) -> list[RunEntry]:
    """Group runs by method, and within a method by the settings that differ; runs of one setting are seeds."""
    entries = []
    for record in records:
        own = [other for other in records if other.method == record.method]
        varied = config_differences(own) if len(own) > 1 else []
        keys = [d.key for d in varied if d.key.partition(".")[0] not in NOT_THE_METHOD]
        setting = ", ".join(f"{key.rpartition('.')[2]} {_shown(record.setting(key))}" for key in keys)
        entries.append(RunEntry(record=record, method=record.method, setting=setting))
    return entries


def _shown(value: Any) -> str:
    return show(json.loads(json.dumps(value, default=str)))
