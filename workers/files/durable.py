"""Files that last: whole or not at all, and still there after a power cut. `orchestrator/disk.py` adds directories.

A rename is the moment a file exists; until then it lies under a name that starts with a dot and ends in `.partial`.
"""

from __future__ import annotations

import os
from pathlib import Path


def partial(target: Path) -> Path:
    """Where `target` is written aside, in the same directory and so on the same disk."""
    return target.with_name(f".{target.name}.partial")


def replace(path: Path, data: bytes) -> None:
    """The whole of it, or what was there before.

    Raises:
        OSError: the disk failed; `path` is as it was.
    """
    aside = partial(path)
    write(aside, data)
    aside.replace(path)
    sync_directory(path.parent)


def write(path: Path, data: bytes) -> None:
    """A file with these bytes, on disk when this returns; on an error a part of it may be there."""
    file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
    try:
        write_all(file, data)
        os.fsync(file)
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(path)) from None  # the system does not say which file
    finally:
        os.close(file)


def write_all(file: int, data: bytes) -> None:
    rest = memoryview(data)
    while rest:  # a nearly full disk takes a part, and refuses the next one
        rest = rest[os.write(file, rest) :]


def sync_directory(path: Path) -> None:
    """Names that were created, renamed or removed in `path` survive a power cut."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
