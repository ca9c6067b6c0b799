"""Fit the planner's constants to a finished run.

Every other step is fitted; the steps between them are predicted and compared. An efficiency that does not carry over to
them does not carry over to another recipe. The scoring efficiency, which a run does not time by itself, keeps its ratio
to the training efficiency.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from orchestrator.config import RunConfig
from orchestrator.plan.constants import DEFAULT, Constants
from orchestrator.plan.format import seconds
from orchestrator.plan.gangs import Shapes, adapter_params
from orchestrator.plan.gpus import Gpu
from orchestrator.plan.measured_steps import MeasuredStep, device_of, measured_steps, with_local_models
from orchestrator.plan.plan import shapes_of
from orchestrator.plan.step import step_time
from orchestrator.plan.time import forward_flops, learning_passes
from orchestrator.rundir.directory import RunDirectory

MIN_SPREAD = 0.1  # of the work per update; with less, a fixed cost and a slow device look the same
FITTED = ("train_mfu", "score_mfu", "prefill_mfu", "decode_mbu", "decode_mfu", "sequence_s", "update_overhead_s")
PUBLISHED = ("publish_latency_s", "broadcast_bytes_per_s", "disk_bytes_per_s")


@dataclass(frozen=True, kw_only=True, slots=True)
class Check:
    """Predicted and measured time of a phase: medians over the steps that were not fitted."""

    phase: str
    predicted_s: float
    measured_s: float

    @property
    def ratio(self) -> float:
        return self.predicted_s / self.measured_s if self.measured_s else math.inf


@dataclass(frozen=True, kw_only=True, slots=True)
class Calibration:
    """Constants fitted to a run on `device`, with their check on the steps that were not fitted."""

    run: str
    device: Gpu
    constants: Constants
    fitted_steps: int
    checks: tuple[Check, ...]


def calibrate(directory: RunDirectory) -> Calibration:
    """Fit the constants to a run.

    Raises:
        BadInput: if it has too few steps, its device is not in the planner's table, or its model is gone.
    """
    config = directory.config()
    device = device_of(directory, config)
    shapes = shapes_of(with_local_models(config, directory))
    steps = measured_steps(directory, config)
    fitting, held_out = steps[::2], steps[1::2]
    constants = _fit(fitting, config, shapes, device)
    return Calibration(
        run=directory.name,
        device=device,
        constants=constants,
        fitted_steps=len(fitting),
        checks=tuple(_checks(held_out, config, shapes, device, constants)),
    )


def describe(calibration: Calibration) -> list[str]:
    """Return lines of text: the constants that changed, and the checks."""
    lines = [
        f"{calibration.run}: {calibration.device.name}, fitted to {calibration.fitted_steps} steps, "
        "checked on the steps between them"
    ]
    for name in (*FITTED, *PUBLISHED):
        before, after = getattr(DEFAULT, name), getattr(calibration.constants, name)
        if before != after:
            lines.append(f"  {name:<22} {before:>9.3g} -> {after:.3g}")
    for check in calibration.checks:
        lines.append(
            f"  {check.phase:<10} predicted {seconds(check.predicted_s):>8}, measured {seconds(check.measured_s):>8}"
            f"   ({check.ratio:.2f})"
        )
    return lines


def _fit(steps: Sequence[MeasuredStep], config: RunConfig, shapes: Shapes, device: Gpu) -> Constants:
    ideal = np.array([_ideal_learning_s(step, config, shapes, device) for step in steps])
    measured, updates = np.array([s.learn_s for s in steps]), np.array([s.updates for s in steps])
    overhead, slope = _two_costs(updates, ideal, measured)
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


def _two_costs(updates: np.ndarray, ideal: np.ndarray, measured: np.ndarray) -> tuple[float, float]:
    """Return (seconds per update, seconds per ideal second) by least squares, neither below 0.

    If all updates have about the same work, the first cost is 0."""
    per_update = ideal / updates
    if per_update.std() > MIN_SPREAD * per_update.mean():
        (overhead, slope), *_ = np.linalg.lstsq(np.stack([updates, ideal], axis=1), measured, rcond=None)
        if overhead >= 0 and slope > 0:
            return float(overhead), float(slope)
    return 0.0, float(np.median(measured / ideal))


def _ideal_learning_s(step: MeasuredStep, config: RunConfig, shapes: Shapes, device: Gpu) -> float:
    """Return the learning time at the device's peak."""
    work = step.work
    passes = learning_passes(frozen=config.model.lora is not None) * work.passes
    flops = passes * work.learned_tokens * forward_flops(shapes["policy"], work.context)
    return flops / (config.policy.num_ranks * device.flops)


def _phase(
    step: MeasuredStep, config: RunConfig, shapes: Shapes, device: Gpu, constants: Constants, phase: str
) -> float:
    busy = step_time(config, shapes, device, step.work, constants).busy.get(phase, {})
    return busy.get("rollout" if phase == "generate" else "policy", 0.0)


def _checks(
    steps: Sequence[MeasuredStep], config: RunConfig, shapes: Shapes, device: Gpu, constants: Constants
) -> list[Check]:
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
    totals = [step_time(config, shapes, device, step.work, constants).step_s for step in steps]
    checks.append(
        Check(
            phase="step",
            predicted_s=statistics.median(totals),
            measured_s=statistics.median(step.step_s for step in steps),
        )
    )
    return checks
