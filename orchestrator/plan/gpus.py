"""Data sheets of GPUs, with an assumed price per hour."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from orchestrator.errors import BadInput, Problem

PRICES = (
    "May 2026, specialised clouds on demand, low end (mercatus-ai.com/blog/cloud-gpu-pricing; "
    "A100-40, B200, MI300X, H20: assumed)"
)
GPUS_PER_NODE = 8


@dataclass(frozen=True, kw_only=True, slots=True)
class Gpu:
    """One kind of GPU. `flops` is the dense bf16 peak.

    Example: `Gpu(name="H100", flops=989e12, bytes_per_s=3.35e12, memory_bytes=80e9, price=2.5, ray="H100")`.
    """

    name: str
    flops: float  # FLOP/s
    bytes_per_s: float  # of its memory
    memory_bytes: float
    price: float  # US dollars per GPU-hour, see PRICES
    ray: str = ""  # its accelerator type in Ray


GPUS: Mapping[str, Gpu] = {
    # Data sheets of the SXM or OAM parts. Ray reports a plain "A100" for both sizes: the larger is assumed.
    gpu.name: gpu
    for gpu in (
        Gpu(name="A100-40", flops=312e12, bytes_per_s=1.555e12, memory_bytes=40e9, price=0.9, ray="A100-40G"),
        Gpu(name="A100-80", flops=312e12, bytes_per_s=2.04e12, memory_bytes=80e9, price=1.1, ray="A100"),
        Gpu(name="H100", flops=989e12, bytes_per_s=3.35e12, memory_bytes=80e9, price=2.5, ray="H100"),
        Gpu(name="H200", flops=989e12, bytes_per_s=4.8e12, memory_bytes=141e9, price=3.5, ray="H200"),
        Gpu(name="B200", flops=2250e12, bytes_per_s=7.7e12, memory_bytes=180e9, price=5.0, ray="B200"),
        Gpu(name="MI300X", flops=1307e12, bytes_per_s=5.3e12, memory_bytes=192e9, price=2.5, ray="AMD-Instinct-MI300X"),
        Gpu(name="H20", flops=148e12, bytes_per_s=4.0e12, memory_bytes=96e9, price=1.5, ray="H20"),
    )
}
CPU_RANK = Gpu(name="CPU", flops=50e9, bytes_per_s=10e9, memory_bytes=1e12, price=0.0)
"""One CPU thread in float32, about 50 GFLOP/s: the peak for efficiencies fitted to a CPU run. Memory is not planned."""
LARGEST = max(GPUS.values(), key=lambda gpu: gpu.memory_bytes)
COUNT_AND_NAME = re.compile(r"(?:(?P<count>[1-9]\d{0,5})\s*[x×*]\s*)?(?P<name>[A-Za-z][\w-]*)")


def parse_gpus(text: str) -> tuple[int | None, Gpu]:
    """Parse `64xH100` as (64, H100), and `H100` as (None, H100): as many GPUs as the recipe needs.

    Raises:
        BadInput: if `text` has another form, or the GPU is not in the table.
    """
    match = COUNT_AND_NAME.fullmatch(text.strip())
    names = ", ".join(GPUS)
    if match is None:
        why = "not a number of GPUs and their type"
        raise BadInput(Problem(what=f"--gpus {text}", why=why, fix=f"write 64xH100; the types are {names}"))
    name = match["name"].upper()
    if name == CPU_RANK.name:
        return (int(match["count"]) if match["count"] else None), CPU_RANK
    gpu = GPUS.get({"A100": "A100-80", "A100-80G": "A100-80", "A100-40G": "A100-40"}.get(name, name))
    if gpu is None:
        raise BadInput(Problem(what=f"--gpus {text}", why=f"unknown GPU `{match['name']}`", fix=f"use one of {names}"))
    return (int(match["count"]) if match["count"] else None), gpu


def of_ray(accelerator: str) -> Gpu | None:
    """Return the GPU with Ray's accelerator type `accelerator`, or None if it is not in the table."""
    matching = [gpu for gpu in GPUS.values() if accelerator.startswith(gpu.ray)]
    return max(matching, key=lambda gpu: len(gpu.ray), default=None)
