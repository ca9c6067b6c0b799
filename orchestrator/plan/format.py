"""Text for a plan's figures: sizes, durations, prices, shortages."""

from __future__ import annotations

import math

from orchestrator.plan.advice import as_overrides
from orchestrator.plan.gpus import GPUS_PER_NODE
from orchestrator.plan.memory import Memory
from orchestrator.plan.plan import Shortage


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
