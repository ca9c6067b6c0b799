"""Environment variables that workers are started with, by the device that they compute on. Light at import.

Ray shows them to everyone who reaches the cluster, so none is a secret.
"""

from __future__ import annotations

import os
from collections.abc import Mapping

ENVIRONMENT = {"TOKENIZERS_PARALLELISM": "false", "OMP_NUM_THREADS": "1"}
"""Environment of every worker."""

CPU_ENVIRONMENT = {
    "DS_ACCELERATOR": "cpu",
    "TORCHDYNAMO_DISABLE": "1",  # DeepSpeed decorates an optimizer with torch.compile: 2 s of imports for each rank
}
"""Environment of workers that compute with torch on a CPU, the engines apart."""

NO_GPU = {"CUDA_VISIBLE_DEVICES": ""}
"""Environment of workers that were given no GPU. Ray 2.60 would let them see all of their machine."""

ALLOCATOR = ("PYTORCH_CUDA_ALLOC_CONF", "PYTORCH_ALLOC_CONF")
"""Variables that torch's allocator on GPUs reads, the first one first."""

NETWORK = ("NCCL_", "TORCH_NCCL_", "GLOO_SOCKET_IFNAME")
"""Beginnings of the variables that say how GPUs and machines reach each other. They hold for all machines."""


def torch_environment(*, cuda: bool) -> Mapping[str, str]:
    """Return the environment of a worker that computes with torch, the engines apart.

    Rows of varying length leave gaps between fixed segments of GPU memory, which expandable ones do not. The driver's
    own setting of the allocator replaces ours. Engines get neither: vLLM shares buffers between the GPUs of an engine
    by cudaIpcGetMemHandle, which refuses such memory (vllm-project/vllm#43923).
    """
    if not cuda:
        return CPU_ENVIRONMENT
    own = {name: os.environ[name] for name in ALLOCATOR if name in os.environ}
    return own or {ALLOCATOR[0]: "expandable_segments:True"}


def threads(cpus: float) -> Mapping[str, str]:
    """Return the environment of a worker whose optimiser computes on all of its `cpus`."""
    return {"OMP_NUM_THREADS": str(max(1, int(cpus)))}


def network() -> Mapping[str, str]:
    """Return the driver's settings of the network, for its workers on all machines."""
    return {name: value for name, value in os.environ.items() if name.startswith(NETWORK)}
