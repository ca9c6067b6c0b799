"""Reports of what a worker wrote, made by the worker itself. Light at import.

    rank ──writes, syncs, reads back──► Report ──► driver: every file is here, with its size ──► manifest

A driver that lists a directory learns only what its own machine sees. A report says what should be there.
"""

from __future__ import annotations

import hashlib
import socket
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from workers import progress
from workers.files import durable


@dataclass(frozen=True, kw_only=True, slots=True)
class WrittenFile:
    """Record of one file. Example: `WrittenFile(name="state/zero_pp_rank_1.pt", bytes=4096, sha256="9a12…")`."""

    name: str  # relative to the directory that the worker was given
    bytes: int
    sha256: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Report:
    """Files that one rank wrote. Example: `Report(role="policy", rank=1, node="node-7", files=(WrittenFile(…),))`."""

    role: str
    rank: int
    node: str
    files: tuple[WrittenFile, ...]
    writes: bool = True  # False: other ranks write everything, and this one has nothing to report

    @property
    def writer(self) -> str:
        """Name of the rank and of its machine."""
        return f"{self.role} rank {self.rank} on {self.node}"


def report(directory: Path, paths: Iterable[Path], *, role: str, rank: int, writes: bool = True) -> Report:
    """Sync files that this process wrote below `directory`, read them back, and return their records.

    Raises:
        OSError: a file is missing, or the disk failed.
    """
    files = tuple(_record(directory, path) for path in sorted(paths))
    return Report(role=role, rank=rank, node=node(), files=files, writes=writes)


def _record(directory: Path, path: Path) -> WrittenFile:
    durable.sync(path)
    digest = sha256(path)
    progress.report()
    return WrittenFile(name=path.relative_to(directory).as_posix(), bytes=path.stat().st_size, sha256=digest)


def node() -> str:
    """Return the name of this machine: its host name, which in a pod is the pod's."""
    return socket.gethostname()


def files(directory: Path) -> Iterator[Path]:
    """Yield every file below a directory, sorted."""
    return (p for p in sorted(directory.rglob("*")) if p.is_file())


def sha256(path: Path) -> str:
    """Return the SHA-256 of a file's bytes, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
