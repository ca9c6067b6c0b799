"""Execute a comparison, or compare finished runs, and write the report.

    compare.yaml ──► runs, as many at a time as devices allow, each a process ──► directories ─┐
    runs/A runs/B … ──► methods and settings from differences in their configs ────────────────┴─► answer ──► report

Complete runs are reused; interrupted runs are resumed.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from orchestrator import disk
from orchestrator.compare.answer import Answer, answer
from orchestrator.compare.best_of_n import best_of_n_curves
from orchestrator.compare.page import Section, write_all
from orchestrator.compare.recipe import Comparison, PlannedRun, TaskConfig
from orchestrator.compare.run_curves import RunEntry, read_curves
from orchestrator.compare.same import compare_prompts, disagreements
from orchestrator.compare.schedule import Job, Scheduler, Stage
from orchestrator.config.run import RunConfig
from orchestrator.config.values import show
from orchestrator.driver.supervise import child_command
from orchestrator.errors import BadInput, Interrupted, Problem, Problems
from orchestrator.monitor.figures import duration, number
from orchestrator.pipeline.roles import gang_plans
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


def run_comparison(
    comparison: Comparison, *, say: Say, extra: Sequence[Card] = (), devices: Devices | None = None
) -> Outcome:
    """Execute the runs that are not complete, and write the report of all complete runs.

    Args:
        comparison: comparison.
        say: prints a line.
        extra: further charts for the report.
        devices: devices that runs share; None: one run at a time.

    Raises:
        BadInput: if a run of the same name has another config, or no run completed.
        Interrupted: if the process was asked to stop.
    """
    remarks = remarks_on(comparison)
    directories = [RunDirectory.create(run.config, run.recipe.text) for run in comparison.runs]
    _run_missing(comparison, directories, devices, say=say)
    sections, lost = [], []
    for task in comparison.config.tasks:
        own = [(r, d) for r, d in zip(comparison.runs, directories, strict=True) if r.task == task.name]
        missing = [f"{_named(r)}: {RunRecord.read(d).ended}" for r, d in own if not d.is_complete]
        lost += [f"{task.name}, {line}" for line in missing]
        entries = [
            RunEntry(record=RunRecord.read(d), method=r.method, setting=r.setting) for r, d in own if d.is_complete
        ]
        if entries:
            sections.append(_section(task, entries, missing, remarks[task.name]))
    if not sections:
        fix = f"see the logs in {comparison.config.directory}"
        raise BadInput(Problem(what="no run of the comparison completed", where=str(comparison.source), fix=fix))
    files = write_all(comparison.config.directory, comparison.config.name, sections, extra)
    return Outcome(answers=tuple(s.answer for s in sections), files=tuple(files), lost=tuple(lost))


def remarks_on(comparison: Comparison) -> dict[str, list[str]]:
    """Return remarks on the prompts of each task's methods."""
    return {
        task.name: list(compare_prompts([run.config for run in comparison.runs if run.task == task.name]))
        for task in comparison.config.tasks
    }


def _run_missing(
    comparison: Comparison, directories: Sequence[RunDirectory], devices: Devices | None, *, say: Say
) -> None:
    """Execute the runs that are not complete, as many at a time as `parallel` and the devices allow."""
    labels = [f"{i + 1} of {len(directories)}: {run.task}, {_named(run)}" for i, run in enumerate(comparison.runs)]
    for label, directory in zip(labels, directories, strict=True):
        if directory.is_complete:
            say(f"{label}: complete, reused")
    missing = [i for i, directory in enumerate(directories) if not directory.is_complete]
    begun: dict[int, float] = {}
    most = 1 if devices is None else devices.most

    def started(j: int) -> None:
        begun[j] = time.monotonic()
        if most > 1:
            say(f"{labels[missing[j]]}: started")

    def ended(j: int, code: int) -> None:
        i = missing[j]
        if code != 0:
            say(f"  the run ended with exit code {code}: {_log(directories[i])}")
        say(f"{labels[i]}: {_result(RunRecord.read(directories[i]))}, {duration(time.monotonic() - begun[j])}")

    scheduler = Scheduler(
        devices=math.inf if devices is None else devices.number, most=most, started=started, ended=ended
    )
    cuda, attempts = devices is not None and devices.cuda, comparison.config.attempts
    scheduler.run([job_of(comparison.runs[i], directories[i], attempts=attempts, cuda=cuda) for i in missing])
    if scheduler.stopped_by is not None:
        raise Interrupted(scheduler.stopped_by, resume=comparison.command)


@dataclass(frozen=True, kw_only=True, slots=True)
class Devices:
    """Devices that the runs of a comparison share: GPUs, or cores without GPUs."""

    number: float
    cuda: bool
    most: float  # runs at a time


def job_of(run: PlannedRun, directory: RunDirectory, *, attempts: int, cuda: bool) -> Job:
    """Return the job that executes a run, with its earlier stages."""
    supervised = ("--attempts", str(attempts)) if attempts > 1 else ()
    return Job(
        command=child_command("run", *supervised, str(run.recipe.source), *run.overrides),
        log=_log(directory),
        stages=tuple(
            Stage(
                directory=stage.directory.absolute(),
                devices=devices_of_stage(stage, cuda=cuda),
                is_complete=partial(_is_complete, stage.directory),
            )
            for stage in run.recipe.stages
        ),
    )


def _is_complete(directory: Path) -> bool:
    return RunDirectory(directory).is_complete


def devices_of_stage(config: RunConfig, *, cuda: bool) -> float:
    """Return the GPUs that a run reserves; without GPUs, the cores."""
    resources = [(len(plan.arguments), plan.resources) for plan in gang_plans(config, cuda=cuda, max_steps=1)]
    return float(sum(count * (one.gpus if cuda else one.cpus) for count, one in resources))


def _log(directory: RunDirectory) -> Path:
    return directory.path / "run.log"


def _named(run: PlannedRun) -> str:
    return f"{' '.join(filter(None, (run.method, run.setting)))}, seed {run.seed}"


def _result(record: RunRecord) -> str:
    curve = record.curve("eval/reward")
    rewards = f"held-out reward {number(curve[0][1])} → {number(curve[-1][1])}, " if curve else ""
    return f"{rewards}{record.meter.device_seconds:,.0f} device-seconds, {record.ended}"


def _section(
    task: TaskConfig, entries: Sequence[RunEntry], missing: Sequence[str], remarks: Sequence[str] = ()
) -> Section:
    best_of_n = None if task.best_of_n is None else partial(best_of_n_curves, task.best_of_n)
    runs = read_curves(entries, task.gold, best_of_n=best_of_n, remarks=remarks)
    result = answer(runs, task=task.name, about=task.about, unit=unit_of(entries[0].record))
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
    task = TaskConfig.model_construct(name=output.name, about="", gold=gold, overrides={}, methods=(), best_of_n=None)
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
