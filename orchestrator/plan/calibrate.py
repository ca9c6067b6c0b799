"""The planner's constants as a finished run shows them.

Every other step is fitted, the steps between are predicted and compared: an efficiency that does not carry over to them
does not carry over to another recipe. What a run does not time by itself (the reference's pass) keeps its relation to
what it does.
"""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from orchestrator.config import RunConfig
from orchestrator.errors import BadInput, Problem
from orchestrator.plan.constants import DEFAULT, Constants
from orchestrator.plan.format import seconds
from orchestrator.plan.gangs import Shapes, adapter_params
from orchestrator.plan.gpus import CPU_RANK, Gpu, of_ray
from orchestrator.plan.plan import shapes_of
from orchestrator.plan.step import step_time
from orchestrator.plan.time import forward_flops, learning_passes
from orchestrator.plan.work import Lengths, Work, work_of
from orchestrator.rundir.directory import RunDirectory
from workers.config import ModelRewardConfig

LEAST_STEPS = 3  # after the first, which is warming up
SPREAD = 0.1  # of the work per update: with less, a fixed cost cannot be told from a slow device
FITTED = ("train_mfu", "score_mfu", "prefill_mfu", "decode_mbu", "decode_mfu", "sequence_s", "update_overhead_s")
PUBLISHED = ("publish_latency_s", "broadcast_bytes_per_s", "disk_bytes_per_s")


@dataclass(frozen=True, kw_only=True, slots=True)
class Step:
    """One line of metrics: what was done and how long it took, in seconds. None: not in this run."""

    work: Work
    learn_s: float
    generate_s: float | None
    publish_s: float | None
    step_s: float
    updates: float


@dataclass(frozen=True, kw_only=True, slots=True)
class Check:
    """Medians over the steps that nothing was fitted to."""

    phase: str
    predicted_s: float
    measured_s: float

    @property
    def ratio(self) -> float:
        return self.predicted_s / self.measured_s if self.measured_s else math.inf


@dataclass(frozen=True, kw_only=True, slots=True)
class Calibration:
    """What a run on `device` says of the constants."""

    run: str
    device: Gpu
    constants: Constants
    fitted_steps: int
    checks: tuple[Check, ...]


def calibrate(directory: RunDirectory) -> Calibration:
    """Fits the constants to a run.

    Raises:
        BadInput: when it has too few steps, its device is not in the planner's table, or its model is gone.
    """
    config = directory.config()
    device = device_of(directory, config)
    shapes = shapes_of(_at_home(config, directory))
    steps = _steps(directory, config)
    fitting, held_out = steps[::2], steps[1::2]
    constants = _fit(fitting, config, shapes, device)
    return Calibration(
        run=directory.name,
        device=device,
        constants=constants,
        fitted_steps=len(fitting),
        checks=tuple(_checks(held_out, config, shapes, device, constants)),
    )


def _at_home(config: RunConfig, directory: RunDirectory) -> RunConfig:
    """With the models where they were for the run, whose working directory its own place tells; the policy's, where it
    is gone, is the one that the run made."""
    depth = len(Path(config.output_dir).parts)
    root = directory.path.parents[min(depth, len(directory.path.parents) - 1)]

    def moved(model: Any) -> Any:
        there = root / str(model.path)
        return model.model_copy(update={"path": str(there)}) if there.is_dir() else model

    model = moved(config.model)
    if not Path(model.path).is_dir() and (directory.model / "config.json").is_file():
        model = model.model_copy(update={"path": str(directory.model)})
    update: dict[str, Any] = {"model": model}
    update["reward"] = tuple(moved(r) if isinstance(r, ModelRewardConfig) else r for r in config.reward)
    if config.critic_model is not None:
        update["critic_model"] = moved(config.critic_model)
    if config.teacher is not None:
        update["teacher"] = config.teacher.model_copy(update={"model": moved(config.teacher.model)})
    return config.model_copy(update=update)


def device_of(directory: RunDirectory, config: RunConfig) -> Gpu:
    """What the newest attempt ran on: as it wrote down, or as its recipe says."""
    notes = sorted(directory.path.glob("logs/attempt-*/devices.json"), key=lambda p: int(p.parent.name.split("-")[1]))
    if not notes:
        if config.cluster.device != "cuda":
            return CPU_RANK
        accelerators: list[str] = []
    else:
        told = json.loads(notes[-1].read_text("utf-8"))
        if not told["cuda"]:
            return CPU_RANK
        accelerators = told["accelerators"]
    known = [gpu for name in accelerators if (gpu := of_ray(name))]
    if len(known) != 1:
        raise BadInput(
            Problem(
                what=f"its GPUs are {', '.join(accelerators) or 'not written down'}",
                where=str(directory.path),
                why="an efficiency is a share of one known GPU's peak",
                fix="calibrate on a run whose GPUs are all of one kind that the planner knows",
            )
        )
    return known[0]


def describe(found: Calibration) -> list[str]:
    """For people to read."""
    lines = [f"{found.run}: {found.device.name}, fitted to {found.fitted_steps} steps, checked on those between"]
    for name in (*FITTED, *PUBLISHED):
        before, after = getattr(DEFAULT, name), getattr(found.constants, name)
        if before != after:
            lines.append(f"  {name:<22} {before:>9.3g} -> {after:.3g}")
    for check in found.checks:
        lines.append(
            f"  {check.phase:<10} predicted {seconds(check.predicted_s):>8}, measured {seconds(check.measured_s):>8}"
            f"   ({check.ratio:.2f})"
        )
    return lines


def _steps(directory: RunDirectory, config: RunConfig) -> list[Step]:
    rows = _rows(directory)
    found: list[Step] = []
    tokens_before = 0.0
    for row in rows:
        if "timing/learn" not in row or "num_tokens" not in row:
            continue
        tokens = row["num_tokens"] - tokens_before  # the file's are those of all steps so far
        tokens_before = row["num_tokens"]
        if tokens <= 0 or not row.get("num_updates"):
            continue
        found.append(
            Step(
                work=_work(config, row, tokens),
                learn_s=row["timing/learn"],
                generate_s=row.get("timing/generate") if config.data.prompts is not None else None,
                publish_s=row.get("timing/publish"),
                step_s=row["timing/step"],
                updates=row["num_updates"],
            )
        )
    if len(found) <= LEAST_STEPS:
        raise BadInput(
            Problem(
                what=f"{len(found)} steps with timings",
                where=str(directory.metrics),
                why=f"the first is warming up, and {LEAST_STEPS} more are needed to fit and to check",
                fix="calibrate on a longer run",
            )
        )
    return found[1:]


def _rows(directory: RunDirectory) -> list[Mapping[str, Any]]:
    try:
        lines = directory.metrics.read_text("utf-8").splitlines()
        return [row for line in lines if isinstance(row := json.loads(line), dict)]
    except (OSError, ValueError) as error:
        fix = "give the directory of a run that has finished"
        problem = Problem(what="cannot be read", where=str(directory.metrics), why=str(error), fix=fix)
        raise BadInput(problem) from None


def _work(config: RunConfig, row: Mapping[str, Any], tokens: float) -> Work:
    """Of this step, with the lengths it had. `tokens` counts each completion with its prompt; where nothing says how
    long completions were, prompt and completion are taken to be equal."""
    sequences = work_of(config, Lengths()).sequences
    both = tokens / sequences
    response = row.get("completions/mean_length") or both / 2
    work = work_of(config, Lengths(prompt=max(1.0, both - response), response=response))
    if "pairs/count" in row and work.sampled:
        # Groups of equal rewards make no pair.
        return replace(work, learned_tokens=row["pairs/count"] * work.row)
    return work


def _fit(steps: Sequence[Step], config: RunConfig, shapes: Shapes, device: Gpu) -> Constants:
    ideal = np.array([_ideal_learning_s(step, config, shapes, device) for step in steps])
    took, updates = np.array([s.learn_s for s in steps]), np.array([s.updates for s in steps])
    overhead, slope = _two_costs(updates, ideal, took)
    train_mfu = 1 / slope
    fitted = replace(
        DEFAULT,
        train_mfu=train_mfu,
        score_mfu=train_mfu * DEFAULT.score_mfu / DEFAULT.train_mfu,
        update_overhead_s=overhead,
    )
    if steps[0].generate_s is not None:
        ratios = [
            step.generate_s / expected
            for step in steps
            if step.generate_s and (expected := _phase(step, config, shapes, device, DEFAULT, "generate"))
        ]
        slower = statistics.median(ratios)  # all terms of an engine's time scale together
        fitted = replace(
            fitted,
            prefill_mfu=DEFAULT.prefill_mfu / slower,
            decode_mbu=DEFAULT.decode_mbu / slower,
            decode_mfu=DEFAULT.decode_mfu / slower,
            sequence_s=DEFAULT.sequence_s * slower,
        )
    published = [step.publish_s for step in steps if step.publish_s]
    if published:
        adapters = adapter_params(config, shapes["policy"])
        sent = 2.0 * (2 * adapters or shapes["policy"].num_params)  # adapters are written and read
        rate = sent / statistics.median(published)
        fitted = replace(fitted, publish_latency_s=0.0)
        fitted = replace(fitted, disk_bytes_per_s=rate) if adapters else replace(fitted, broadcast_bytes_per_s=rate)
    return fitted


def _two_costs(updates: np.ndarray, ideal: np.ndarray, took: np.ndarray) -> tuple[float, float]:
    """(seconds per update, seconds per ideal second) by least squares, neither below 0. Where all updates have about
    the same work only the second is asked for."""
    per_update = ideal / updates
    if per_update.std() > SPREAD * per_update.mean():
        (overhead, slope), *_ = np.linalg.lstsq(np.stack([updates, ideal], axis=1), took, rcond=None)
        if overhead >= 0 and slope > 0:
            return float(overhead), float(slope)
    return 0.0, float(np.median(took / ideal))


def _ideal_learning_s(step: Step, config: RunConfig, shapes: Shapes, device: Gpu) -> float:
    """At the device's peak."""
    work = step.work
    passes = learning_passes(frozen=config.model.lora is not None) * work.passes
    flops = passes * work.learned_tokens * forward_flops(shapes["policy"], work.context)
    return flops / (config.policy.num_ranks * device.flops)


def _phase(step: Step, config: RunConfig, shapes: Shapes, device: Gpu, constants: Constants, phase: str) -> float:
    busy = step_time(config, shapes, device, step.work, constants).busy.get(phase, {})
    return busy.get("rollout" if phase == "generate" else "policy", 0.0)


def _checks(steps: Sequence[Step], config: RunConfig, shapes: Shapes, device: Gpu, constants: Constants) -> list[Check]:
    measured = {
        "learn": [s.learn_s for s in steps],
        "generate": [s.generate_s for s in steps if s.generate_s is not None],
        "publish": [s.publish_s for s in steps if s.publish_s is not None],
    }
    checks = []
    for phase, values in measured.items():
        if values:
            predicted = [_phase(step, config, shapes, device, constants, phase) for step in steps]
            checks.append(
                Check(phase=phase, predicted_s=statistics.median(predicted), measured_s=statistics.median(values))
            )
    whole = [step_time(config, shapes, device, step.work, constants).step_s for step in steps]
    checks.append(
        Check(
            phase="step",
            predicted_s=statistics.median(whole),
            measured_s=statistics.median(step.step_s for step in steps),
        )
    )
    return checks
