"""Checksummed weights: the shared-memory segment through which they are published, and safetensors files."""

from __future__ import annotations

import mmap
import os
import zlib
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from workers.weights import CHECKSUM_BYTES, Entry, dtype_name


class Segment:
    """A file in shared memory, mapped. The writer creates and removes it; readers only map it."""

    def __init__(self, path: str, num_bytes: int | None = None) -> None:
        """Map the segment at `path`. `num_bytes`: create it with this size (the writer); None: it exists (readers)."""
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
        """Return a weight as a view of the segment."""
        raw = self._bytes[entry.offset : entry.offset + entry.num_bytes]
        return raw.view(getattr(torch, entry.dtype)).view(entry.shape)

    def write(self, entries: Iterable[Entry], weights: Iterable[tuple[str, Tensor]]) -> None:
        """Copy the weights, each with its checksum, to their places.

        Raises:
            ValueError: name, dtype or shape of a weight differs from its entry.
        """
        for entry, (name, tensor) in zip(entries, weights, strict=True):
            if (name, dtype_name(tensor.dtype), tuple(tensor.shape)) != (entry.name, entry.dtype, entry.shape):
                raise ValueError(
                    f"expected weight {entry.name} {entry.dtype} {entry.shape}, "
                    f"got {name} {dtype_name(tensor.dtype)} {tuple(tensor.shape)}"
                )
            self.tensor(entry).copy_(tensor)
            self._checksum(entry).copy_(_bytes_of(checksum(tensor)))

    def read(self, entries: Iterable[Entry]) -> Iterator[tuple[str, Tensor]]:
        """Yield the weights in order, as views of the segment.

        Raises:
            ValueError: the checksum of a weight does not match.
        """
        for entry in entries:
            tensor = self.tensor(entry)
            if not torch.equal(self._checksum(entry), _bytes_of(checksum(tensor))):
                raise ValueError(f"{self.path}: weight {entry.name} is corrupt: its checksum does not match")
            yield entry.name, tensor

    def _checksum(self, entry: Entry) -> Tensor:
        end = entry.offset + entry.num_bytes
        return self._bytes[end : end + CHECKSUM_BYTES]

    def remove(self) -> None:
        Path(self.path).unlink(missing_ok=True)


def checksum(tensor: Tensor) -> int:
    """Return the CRC-32 of the bytes of a tensor in host memory."""
    return zlib.crc32(tensor.detach().contiguous().view(-1).view(torch.uint8).numpy().data)


def _bytes_of(number: int) -> Tensor:
    return torch.tensor(list(number.to_bytes(CHECKSUM_BYTES, "little")), dtype=torch.uint8)


def save_tensors(tensors: Mapping[str, Tensor], file: Path, metadata: Mapping[str, str] | None = None) -> None:
    """Write a safetensors file with the permissions of a new file: safetensors itself restricts it to the owner."""
    file.touch()
    mode = file.stat().st_mode
    save_file(dict(tensors), file, metadata={"format": "pt", **(metadata or {})})
    file.chmod(mode)
