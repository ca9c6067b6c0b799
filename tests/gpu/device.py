"""The device of a check: its row in the planner's table, and its memory. On a CPU memory is not measured."""

from __future__ import annotations

import torch

from orchestrator.plan.gpus import CPU_RANK, GPUS, Gpu


def gpu_of(device: str) -> Gpu:
    """Return the planner's row for the GPU of this process, for example H100 for `NVIDIA H100 80GB HBM3`.

    Raises:
        LookupError: the GPU is not in the planner's table.
    """
    if device == "cpu":
        return CPU_RANK
    return named(torch.cuda.get_device_name(0))


def named(name: str) -> Gpu:
    """Return the planner's row for a GPU by the name that its driver gives."""
    matching = [gpu for gpu in GPUS.values() if gpu.ray in name.replace("NVIDIA ", "").replace(" ", "-")]
    if not matching:
        raise LookupError(f"{name} is not in orchestrator/plan/gpus.py; add a row of its data sheet")
    return max(matching, key=lambda gpu: len(gpu.ray))


def synchronize(device: str) -> None:
    if device != "cpu":
        torch.cuda.synchronize()


def reset_peak(device: str) -> float:
    """Begin to measure the peak. Return the bytes in use."""
    if device == "cpu":
        return 0.0
    torch.cuda.reset_peak_memory_stats()
    return float(torch.cuda.memory_allocated())


def peak_bytes(device: str) -> float:
    """Return the most bytes of tensors since `reset_peak`; the planner's runtime (context, NCCL) is not among them."""
    return 0.0 if device == "cpu" else float(torch.cuda.max_memory_allocated())
