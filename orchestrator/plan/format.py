"""Text for a plan's figures: sizes, durations, prices, shortages."""

from __future__ import annotations

import math

from orchestrator.config import RunConfig
from orchestrator.config.run import CHECKPOINT_S, CHECKPOINT_SHARE
from orchestrator.plan.advice import Changes, Shortage, as_overrides
from orchestrator.plan.calls import SAFETY, Call
from orchestrator.plan.gpus import GPUS_PER_NODE
from orchestrator.plan.memory import Memory


def gigabytes(size: float) -> str:
    """Format bytes in units of 1e9: "6.4 GB", "120 GB"."""
    return f"{size / 1e9:.0f} GB" if size >= 99.5e9 else f"{size / 1e9:.1f} GB"


def memory_text(memory: Memory) -> str:
    """List the parts, largest first: "35.3 GB states + 5.0 GB runtime"."""
    parts = sorted(memory.parts, key=lambda part: -part[1])
    return " + ".join(f"{gigabytes(size)} {name}" for name, size in parts)


def seconds(value: float) -> str:
    """Format a duration: "0.53 s", "76 s", "21 min", "9.3 h"."""
    if not math.isfinite(value):
        return "never"
    if value >= 5400:
        return f"{value / 3600:.1f} h"
    if value >= 600:
        return f"{value / 60:.0f} min"
    return f"{value:.0f} s" if value >= 100 else f"{value:.3g} s"


def dollars(value: float) -> str:
    return f"${value:,.0f}" if value >= 100 else f"${value:.2g}" if value < 1 else f"${value:.1f}"


def interval_text(config: RunConfig, step_s: float) -> str:
    """Describe the checkpoint interval, such as "every 20 steps (37 min)"."""
    every = config.checkpoint.every
    if every is None:
        return f"every {CHECKPOINT_S / 60:g} min, or less often to spend at most {CHECKPOINT_SHARE:.0%} of the time"
    interval = f"every {every} steps" if every > 1 else "every step"
    return f"{interval} ({seconds(every * step_s)})" if math.isfinite(step_s) else interval


def shortage_text(shortage: Shortage) -> str:
    """Say what a role lacks: "policy lacks 56.9 GB per GPU"."""
    if shortage.short_bytes:
        return f"{shortage.role} lacks {gigabytes(shortage.short_bytes)} per GPU"
    return f"{shortage.role} needs more GPUs per actor than a node has ({GPUS_PER_NODE})"


def suggestion_text(shortage: Shortage) -> str:
    """Name the nearest change with which the role fits: overrides, a larger GPU, or both."""
    options = [" ".join(as_overrides(shortage.changes))] if shortage.changes else []
    options += [f"{shortage.larger.name} GPUs ({gigabytes(shortage.larger.memory_bytes)})"] if shortage.larger else []
    return ", or ".join(options) or "none of the changes tried is enough: use a smaller model or LoRA (model.lora)"


def late_text(call: Call) -> str:
    """Say what may take too long: "generate: rollout needs 1,200 s for 512 prompts, and twice that exceeds …"."""
    needs = f"{call.seconds:,.0f} s" if math.isfinite(call.seconds) else "for ever"
    return (
        f"{call.phase}: {call.role} needs {needs} for {call.what}, and {SAFETY:g} times that exceeds "
        f"{call.key} = {call.limit_s:,.0f}"
    )


def ending_text(changes: Changes) -> str:
    """Name the changes with which every call ends in time."""
    return " ".join(as_overrides(changes)) or "none: a role does not fit"
