"""Read the data for a calibration from a finished run: its device, its models, and the timings of its steps."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from orchestrator.config import RunConfig
from orchestrator.errors import BadInput, Problem
from orchestrator.plan.gpus import CPU_RANK, Gpu, of_ray
from orchestrator.plan.work import Lengths, Work, work_of
from orchestrator.rundir.directory import RunDirectory
from workers.config import ModelScorerConfig

MIN_STEPS = 3  # after the first step, which is a warm-up


@dataclass(frozen=True, kw_only=True, slots=True)
class MeasuredStep:
    """Work and timings of one step, from one line of metrics.jsonl. None: the phase does not occur in this run."""

    work: Work
    learn_s: float
    generate_s: float | None
    publish_s: float | None
    step_s: float
    updates: float


def with_local_models(config: RunConfig, directory: RunDirectory) -> RunConfig:
    """Resolve relative model paths against the run's working directory, inferred from the run directory.

    If the policy's base model is gone, the run's own model is used."""
    depth = len(Path(config.output_dir).parts)
    root = directory.path.parents[min(depth, len(directory.path.parents) - 1)]

    def resolve(model: Any) -> Any:
        path = root / str(model.path)
        return model.model_copy(update={"path": str(path)}) if path.is_dir() else model

    model = resolve(config.model)
    if not Path(model.path).is_dir() and (directory.model / "config.json").is_file():
        model = model.model_copy(update={"path": str(directory.model)})
    update: dict[str, Any] = {"model": model}
    update["reward"] = tuple(resolve(r) if isinstance(r, ModelScorerConfig) else r for r in config.reward)
    if config.critic_model is not None:
        update["critic_model"] = resolve(config.critic_model)
    if config.teacher is not None:
        update["teacher"] = config.teacher.model_copy(update={"model": resolve(config.teacher.model)})
    return config.model_copy(update=update)


def device_of(directory: RunDirectory, config: RunConfig) -> Gpu:
    """Return the device of the newest attempt, from its devices.json, or else from the recipe.

    Raises:
        BadInput: if its GPUs are not all of one type that the planner knows.
    """
    files = sorted(directory.path.glob("logs/attempt-*/devices.json"), key=lambda p: int(p.parent.name.split("-")[1]))
    if not files:
        if config.cluster.device != "cuda":
            return CPU_RANK
        accelerators: list[str] = []
    else:
        devices = json.loads(files[-1].read_text("utf-8"))
        if not devices["cuda"]:
            return CPU_RANK
        accelerators = devices["accelerators"]
    known = [gpu for name in accelerators if (gpu := of_ray(name))]
    if len(known) != 1:
        raise BadInput(
            Problem(
                what=f"the run's GPUs are {', '.join(accelerators) or 'not recorded'}",
                where=str(directory.path),
                why="an efficiency is a share of one GPU's peak",
                fix="calibrate on a run whose GPUs are all of one type that the planner knows",
            )
        )
    return known[0]


def measured_steps(directory: RunDirectory, config: RunConfig) -> list[MeasuredStep]:
    """Return the steps of a run without the first one, which is a warm-up.

    Raises:
        BadInput: if metrics.jsonl cannot be read, or has too few steps with timings.
    """
    steps: list[MeasuredStep] = []
    tokens_before = 0.0
    for row in _rows(directory):
        if "timing/learn" not in row or "num_tokens" not in row:
            continue
        tokens = row["num_tokens"] - tokens_before  # the metric is cumulative
        tokens_before = row["num_tokens"]
        if tokens <= 0 or not row.get("num_updates"):
            continue
        steps.append(
            MeasuredStep(
                work=_work(config, row, tokens),
                learn_s=row["timing/learn"],
                generate_s=row.get("timing/generate") if config.data.prompts is not None else None,
                publish_s=row.get("timing/publish"),
                step_s=row["timing/step"],
                updates=row["num_updates"],
            )
        )
    if len(steps) <= MIN_STEPS:
        raise BadInput(
            Problem(
                what=f"{len(steps)} steps with timings",
                where=str(directory.metrics),
                why=f"the first is a warm-up, and {MIN_STEPS} more are needed to fit and to check",
                fix="calibrate on a longer run",
            )
        )
    return steps[1:]


def _rows(directory: RunDirectory) -> list[Mapping[str, Any]]:
    try:
        lines = directory.metrics.read_text("utf-8").splitlines()
        return [row for line in lines if isinstance(row := json.loads(line), dict)]
    except (OSError, ValueError) as error:
        fix = "give the directory of a finished run"
        problem = Problem(what="cannot be read", where=str(directory.metrics), why=str(error), fix=fix)
        raise BadInput(problem) from None


def _work(config: RunConfig, row: Mapping[str, Any], tokens: float) -> Work:
    """Return the work of a step with the mean lengths it had.

    `tokens` counts each completion with its prompt. Without a metric of completion lengths, prompts and completions are
    assumed to be equally long."""
    sequences = work_of(config, Lengths()).sequences
    both = tokens / sequences
    response = row.get("completions/mean_length") or both / 2
    work = work_of(config, Lengths(prompt=max(1.0, both - response), response=response))
    if "pairs/count" in row and work.sampled:
        # Groups with equal rewards make no pair.
        return replace(work, learned_tokens=(row["pairs/count"] + (row.get("pairs/mixed") or 0)) * work.row)
    return work
