"""What a run's checkpoints take on disk, and how often there is one.

DeepSpeed writes what it cannot make anew: float32 master weights and AdamW's two moments, 12 bytes per trained
parameter; below ZeRO-3 the module's own weights besides. A frozen base is not written.
"""

from __future__ import annotations

import math

from orchestrator.config import RunConfig
from orchestrator.config.run import CHECKPOINT_S, CHECKPOINT_SHARE
from orchestrator.plan.format import seconds
from orchestrator.plan.gangs import Shapes, adapter_params, headless
from workers.config import LearnerConfig
from workers.needs import NEEDS


def bytes_per_parameter(*, zero_stage: int, weight_bytes: int) -> int:
    """Of one that is trained. At stage 0 float32 weights are their own master.

    >>> bytes_per_parameter(zero_stage=3, weight_bytes=2), bytes_per_parameter(zero_stage=1, weight_bytes=2)
    (12, 14)
    """
    master = 4 if zero_stage or weight_bytes == 2 else 0
    return master + 8 + (0 if zero_stage == 3 else weight_bytes)


def checkpoint_bytes(config: RunConfig, shapes: Shapes) -> float:
    """Of one checkpoint: policy and critic."""
    width = 4 if config.model.dtype == "float32" else 2
    learners: list[tuple[str, LearnerConfig]] = [("policy", config.policy)]
    learners += [("critic", config.critic or config.policy)] if NEEDS[config.algorithm.type].critic else []
    total = 0.0
    for role, settings in learners:
        scores = role == "critic" or NEEDS[config.algorithm.type].head == "scores"
        shape = headless(shapes[role]) if scores else shapes[role]
        trained = adapter_params(config, shape) or shape.num_params
        total += trained * bytes_per_parameter(zero_stage=settings.zero_stage, weight_bytes=width)
    return total


def disk_bytes(config: RunConfig, shapes: Shapes) -> float:
    """While one is written: those that are kept, and the new one beside them."""
    return (config.checkpoint.keep + 1) * checkpoint_bytes(config, shapes)


def how_often(config: RunConfig, step_s: float) -> str:
    """Example: "every 20 steps (37 min)"."""
    every = config.checkpoint.every
    if every is None:
        return f"every {CHECKPOINT_S / 60:g} min, or as rarely as costs {CHECKPOINT_SHARE:.0%} of the time"
    told = f"every {every} steps" if every > 1 else "every step"
    return f"{told} ({seconds(every * step_s)})" if math.isfinite(step_s) else told
