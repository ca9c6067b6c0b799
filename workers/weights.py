"""The versioned stream of weights: learner → rollout engines.

    policy ranks ──gather, write──► shared-memory segment ──map──► every engine of the node        (CPU)
    policy rank 0 ──────────────────NCCL broadcast──────────────► every engine of the cluster      (GPU)

Control goes through vLLM's own weight-transfer calls (init, start, update, finish with a version) on both. What travels
is described once by a `Manifest`; the bytes of every version then lie in the same places. In a segment each weight is
followed by a checksum, which whoever reads it computes anew.
"""

from __future__ import annotations

import mmap
import os
import zlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

ALIGNMENT = 64  # bytes
CHECKSUM_BYTES = 4
SHARED_MEMORY = "/dev/shm"


@dataclass(frozen=True, kw_only=True, slots=True)
class Entry:
    """One weight. Example: `Entry(name="lm_head.weight", dtype="bfloat16", shape=(32000, 4096), offset=0)`."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    offset: int  # bytes into the segment

    @property
    def num_bytes(self) -> int:
        size = getattr(torch, self.dtype).itemsize
        for extent in self.shape:
            size *= extent
        return int(size)


@dataclass(frozen=True, kw_only=True, slots=True)
class Rendezvous:
    """Where NCCL peers meet. The sender is rank 0, engine i's workers follow from 1 + i * tensor_parallel_size."""

    address: str
    port: int
    world_size: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Manifest:
    """What a publication carries. `segment` is None when the weights travel by NCCL, `rendezvous` when they do not."""

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
    """Lay the weights out one after the other with their checksums, each on a 64-byte boundary."""
    entries, offset = [], 0
    for name, dtype, shape in weights:
        entry = Entry(name=name, dtype=_dtype(dtype), shape=shape, offset=offset)
        entries.append(entry)
        offset += -(-(entry.num_bytes + CHECKSUM_BYTES) // ALIGNMENT) * ALIGNMENT
    return Manifest(entries=tuple(entries), segment=segment, rendezvous=rendezvous)


class Segment:
    """A file in shared memory, mapped. The writer creates and removes it; readers only map it."""

    def __init__(self, path: str, num_bytes: int | None = None) -> None:
        self.path = path
        flags = os.O_RDWR | (os.O_CREAT | os.O_TRUNC if num_bytes is not None else 0)
        descriptor = os.open(path, flags, 0o600)
        try:
            if num_bytes is not None:
                os.posix_fallocate(descriptor, 0, num_bytes)  # fails now, not with a bus error later
            self._map = mmap.mmap(descriptor, 0)
        finally:
            os.close(descriptor)
        self._bytes = torch.frombuffer(self._map, dtype=torch.uint8)

    def tensor(self, entry: Entry) -> Tensor:
        """A view of the segment, no copy."""
        raw = self._bytes[entry.offset : entry.offset + entry.num_bytes]
        return raw.view(getattr(torch, entry.dtype)).view(entry.shape)

    def write(self, entries: Iterable[Entry], weights: Iterable[tuple[str, Tensor]]) -> None:
        """Copy the weights to their places; raises ValueError when they are not exactly those of the manifest."""
        for entry, (name, tensor) in zip(entries, weights, strict=True):
            if (name, _dtype(tensor.dtype), tuple(tensor.shape)) != (entry.name, entry.dtype, entry.shape):
                raise ValueError(
                    f"expected weight {entry.name} {entry.dtype} {entry.shape}, "
                    f"was given {name} {_dtype(tensor.dtype)} {tuple(tensor.shape)}"
                )
            self.tensor(entry).copy_(tensor)
            self._checksum(entry).copy_(_bytes_of(checksum(tensor)))

    def read(self, entries: Iterable[Entry]) -> Iterator[tuple[str, Tensor]]:
        """Views of the weights, in their order; raises ValueError at one that is not what was written."""
        for entry in entries:
            tensor = self.tensor(entry)
            if not torch.equal(self._checksum(entry), _bytes_of(checksum(tensor))):
                raise ValueError(f"{self.path}: weight {entry.name} is not what was written: its checksum is another")
            yield entry.name, tensor

    def _checksum(self, entry: Entry) -> Tensor:
        end = entry.offset + entry.num_bytes
        return self._bytes[end : end + CHECKSUM_BYTES]

    def remove(self) -> None:
        Path(self.path).unlink(missing_ok=True)


def checksum(tensor: Tensor) -> int:
    """CRC-32 of the bytes of a tensor in host memory."""
    return zlib.crc32(tensor.detach().contiguous().view(-1).view(torch.uint8).numpy().data)


def _bytes_of(number: int) -> Tensor:
    return torch.tensor(list(number.to_bytes(CHECKSUM_BYTES, "little")), dtype=torch.uint8)


def save_tensors(tensors: Mapping[str, Tensor], file: Path, noted: Mapping[str, str] | None = None) -> None:
    """Write a safetensors file that whoever may read the files beside it may read too: the library's own are the
    owner's alone."""
    file.touch()
    mode = file.stat().st_mode
    save_file(dict(tensors), file, metadata={"format": "pt", **(noted or {})})
    file.chmod(mode)


def _dtype(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def segment_path(run: str) -> str:
    """Where the driver of a run, which is this process, has its weights published."""
    return f"{SHARED_MEMORY}/rlhf-{run}-{os.getpid()}-weights"


def remove_orphans(run: str) -> None:
    """Remove the segments of drivers of this run that are dead: a killed one leaves a copy of the model in memory."""
    for path in Path(SHARED_MEMORY).glob(f"rlhf-{run}-*-weights"):
        pid = path.name.removeprefix(f"rlhf-{run}-").removesuffix("-weights")
        if pid.isdigit() and not Path(f"/proc/{pid}").exists():
            path.unlink(missing_ok=True)
