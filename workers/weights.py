"""The versioned stream of weights from the learner to the rollout engines: layout and addresses.

    policy ranks ──gather, write──► shared-memory segment ──map──► every engine of the node        (CPU)
    policy rank 0 ──────────────────NCCL broadcast──────────────► every engine of the cluster      (GPU)

On both paths control goes through vLLM's own weight-transfer calls (init, start, update, finish with a version).
A `Manifest` describes the weights once; the bytes of every version then have the same layout. `workers/segment.py`
holds the shared-memory segment.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

ALIGNMENT = 64  # bytes
CHECKSUM_BYTES = 4
SHARED_MEMORY = "/dev/shm"


@dataclass(frozen=True, kw_only=True, slots=True)
class Entry:
    """Layout of one weight.

    Example: `Entry(name="lm_head.weight", dtype="bfloat16", shape=(32000, 4096), offset=0)`.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    offset: int  # bytes into the segment

    @property
    def num_bytes(self) -> int:
        import torch

        size = getattr(torch, self.dtype).itemsize
        for extent in self.shape:
            size *= extent
        return int(size)


@dataclass(frozen=True, kw_only=True, slots=True)
class Average:
    """Moving average of weights: (1 − alpha)·(those in `directory`) + alpha·(the current ones)."""

    directory: str  # Hugging Face directory, written by an earlier export of the same model
    alpha: float


@dataclass(frozen=True, kw_only=True, slots=True)
class Rendezvous:
    """Address at which NCCL peers meet.

    The sender is rank 0. The workers of engine i have the ranks from 1 + i * tensor_parallel_size.
    """

    address: str
    port: int
    world_size: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Manifest:
    """Description of a publication. `segment` is None if the weights travel by NCCL, `rendezvous` if they do not."""

    entries: tuple[Entry, ...]
    segment: str | None = None
    rendezvous: Rendezvous | None = None

    @property
    def num_bytes(self) -> int:
        last = self.entries[-1]
        return last.offset + last.num_bytes + CHECKSUM_BYTES


def describe(
    weights: Iterable[tuple[str, torch.dtype, tuple[int, ...]]],
    *,
    segment: str | None = None,
    rendezvous: Rendezvous | None = None,
) -> Manifest:
    """Lay the weights out one after the other, each followed by its checksum and aligned to 64 bytes."""
    entries, offset = [], 0
    for name, dtype, shape in weights:
        entry = Entry(name=name, dtype=dtype_name(dtype), shape=shape, offset=offset)
        entries.append(entry)
        offset += -(-(entry.num_bytes + CHECKSUM_BYTES) // ALIGNMENT) * ALIGNMENT
    return Manifest(entries=tuple(entries), segment=segment, rendezvous=rendezvous)


def dtype_name(dtype: torch.dtype) -> str:
    """Return the name of a dtype within torch: `bfloat16`."""
    return str(dtype).removeprefix("torch.")


def segment_path(run: str) -> str:
    """Return the path of the shared-memory segment of a run whose driver is this process."""
    return f"{SHARED_MEMORY}/rlhf-{run}-{os.getpid()}-weights"


def remove_orphans(run: str) -> None:
    """Remove the segments that killed drivers of this run have left behind: each holds a copy of the model."""
    for path in Path(SHARED_MEMORY).glob(f"rlhf-{run}-*-weights"):
        pid = path.name.removeprefix(f"rlhf-{run}-").removesuffix("-weights")
        if pid.isdigit() and not Path(f"/proc/{pid}").exists():
            path.unlink(missing_ok=True)
