"""Durable file writes: a file is complete or absent, and survives a power cut. `orchestrator/disk.py` adds directories.

A rename makes a file visible. Before, it has a name that starts with a dot and ends in `.partial`.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path


def partial(target: Path) -> Path:
    """Return the temporary path of `target`, in the same directory and so on the same disk."""
    return target.with_name(f".{target.name}.partial")


def replace(path: Path, data: bytes) -> None:
    """Replace the content of a file atomically.

    Raises:
        OSError: the disk failed; the file is unchanged.
    """
    aside = partial(path)
    write(aside, data)
    aside.replace(path)
    sync_directory(path.parent)


def replace_by(path: Path, create: Callable[[Path], None]) -> None:
    """Replace a file atomically by the one that `create` writes at the temporary path it is given.

    Raises:
        OSError: the disk failed; the file is unchanged.
    """
    aside = partial(path)
    create(aside)
    sync(aside)
    aside.replace(path)
    sync_directory(path.parent)


def write(path: Path, data: bytes) -> None:
    """Write a file and sync it to disk. On an error a part of it may remain."""
    file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
    try:
        write_all(file, data)
        os.fsync(file)
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(path)) from None  # the original names no file
    finally:
        os.close(file)


def write_all(file: int, data: bytes) -> None:
    """Write all of `data` to a file descriptor."""
    rest = memoryview(data)
    while rest:  # a nearly full disk accepts a part and refuses the next
        rest = rest[os.write(file, rest) :]


def sync_directory(path: Path) -> None:
    """Sync a directory, so that created, renamed and removed names survive a power cut."""
    sync(path)


def sync(path: Path) -> None:
    """Sync a file, or a directory's names, to disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def make_directory(path: Path) -> None:
    """Create `path` and its parents, durably."""
    if not path.is_dir():
        make_directory(path.parent)
        path.mkdir(exist_ok=True)
        sync_directory(path.parent)
