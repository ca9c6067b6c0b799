"""Disk space and interval of a run's checkpoints.

DeepSpeed saves the float32 master weights and AdamW's two moments: 12 bytes per trained parameter. Below ZeRO-3 it
also saves the module's own weights. A frozen base is not saved.
"""

from __future__ import annotations

import math

from orchestrator.config import RunConfig
from orchestrator.config.run import CHECKPOINT_S, CHECKPOINT_SHARE
from orchestrator.plan.format import seconds
from orchestrator.plan.gangs import Shapes, adapter_params, headless
from workers.config import LearnerConfig


def bytes_per_parameter(*, zero_stage: int, weight_bytes: int) -> int:
    """Return the bytes of one trained parameter in a checkpoint. At stage 0 float32 weights are their own master copy.

    >>> bytes_per_parameter(zero_stage=3, weight_bytes=2), bytes_per_parameter(zero_stage=1, weight_bytes=2)
    (12, 14)
    """
    master = 4 if zero_stage or weight_bytes == 2 else 0
    return master + 8 + (0 if zero_stage == 3 else weight_bytes)


def checkpoint_bytes(config: RunConfig, shapes: Shapes) -> float:
    """Return the size of one checkpoint: policy and critic."""
    width = 4 if config.model.dtype == "float32" else 2
    learners: list[tuple[str, LearnerConfig]] = [("policy", config.policy)]
    learners += [("critic", config.critic or config.policy)] if config.algorithm.needs.critic else []
    total = 0.0
    for role, settings in learners:
        scores = role == "critic" or config.algorithm.needs.head == "scores"
        shape = headless(shapes[role]) if scores else shapes[role]
        trained = adapter_params(config, shape) or shape.num_params
        total += trained * bytes_per_parameter(zero_stage=settings.zero_stage, weight_bytes=width)
    return total


def disk_bytes(config: RunConfig, shapes: Shapes) -> float:
    """Return the peak disk space: the checkpoints that are kept, and one that is being written."""
    return (config.checkpoint.keep + 1) * checkpoint_bytes(config, shapes)


def interval_text(config: RunConfig, step_s: float) -> str:
    """Describe the checkpoint interval, such as "every 20 steps (37 min)"."""
    every = config.checkpoint.every
    if every is None:
        return f"every {CHECKPOINT_S / 60:g} min, or less often to spend at most {CHECKPOINT_SHARE:.0%} of the time"
    interval = f"every {every} steps" if every > 1 else "every step"
    return f"{interval} ({seconds(every * step_s)})" if math.isfinite(step_s) else interval
