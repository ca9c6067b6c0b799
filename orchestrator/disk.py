"""Durable writes: complete or not at all, and still there after a power cut.

    write_atomic        a file: written under a temporary name, fsynced, renamed
    publish             a directory: filled under a temporary name, every file and name fsynced, renamed
    append              bytes at the end of an open file: all of them, or the file as it was

A file or directory exists from its rename on. Until then it has a temporary name, which starts with a dot and ends in
`.partial`: it is never read, and the next attempt removes it. This module is built on `workers/files/durable.py`, by
which workers write.
"""

from __future__ import annotations

import errno
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from orchestrator.errors import DiskFailed, WorkerFailed
from workers.files.durable import make_directory, partial, replace, sync, sync_directory, write, write_all
from workers.files.written import files, sha256

__all__ = [
    "append",
    "clear",
    "explain",
    "explained",
    "files",
    "fresh",
    "is_partial",
    "make_directory",
    "partial",
    "probe",
    "publish",
    "sha256",
    "sync_directory",
    "sync_tree",
    "write",
    "write_atomic",
]


FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
BROKEN = (errno.EIO, errno.EROFS, errno.EACCES, errno.EPERM)
# End of a worker's traceback when torch or the system could not write.
FULL_IN_A_WORKER = re.compile(r"No space left on device|Disk quota exceeded|PytorchStreamWriter failed writing file")
# Last line of a worker's traceback when the disk is broken, with the file if the system names it.
BROKEN_IN_A_WORKER = re.compile(
    r"\[Errno (?:5|30)\] (?P<why>Input/output error|Read-only file system)(?:: '(?P<place>[^'\n]+)')?$"
)


@contextmanager
def explained(directory: Path, resume: str) -> Iterator[None]:
    """Turn errors of the disk that holds `directory` into DiskFailed, with the command to resume."""
    try:
        yield
    except (OSError, WorkerFailed) as error:
        explanation = explain(error, directory, resume)
        if explanation is error:
            raise
        raise explanation from error


def explain(error: BaseException, directory: Path, resume: str) -> BaseException:
    """Return DiskFailed for an error of the disk, else the error itself."""
    if isinstance(error, OSError) and error.errno in (*FULL, *BROKEN):
        place, full, why = Path(error.filename or directory), error.errno in FULL, str(error.strerror)
        if not full and not place.is_relative_to(directory):
            return error  # not a file of the run
    elif isinstance(error, WorkerFailed) and (match := FULL_IN_A_WORKER.search(error.traceback)):
        place, full, why = directory, True, f"{error.role} rank {error.rank}: {match[0]}"
    elif isinstance(error, WorkerFailed) and (match := BROKEN_IN_A_WORKER.search(error.traceback)):
        place, full, why = Path(match["place"] or directory), False, f"{error.role} rank {error.rank}: {match['why']}"
        if not place.is_relative_to(directory):
            return error  # not a file of the run
    else:
        return error
    return DiskFailed(why, place=str(place), full=full, free_bytes=_free_bytes(place), resume=resume)


def probe(directory: Path) -> None:
    """Write and remove a block in `directory`, to fail before the run starts. Raise OSError if that is impossible."""
    make_directory(directory)
    path = partial(directory / "probe")
    write(path, bytes(4096))
    path.unlink()


def _free_bytes(place: Path) -> int:
    existing = next((p for p in (place, *place.parents) if p.exists()), Path("/"))
    return shutil.disk_usage(existing).free


def is_partial(path: Path) -> bool:
    """Return whether `path` was left by an interrupted write."""
    return path.name.startswith(".") and path.name.endswith(".partial")


def clear(directory: Path) -> None:
    """Remove what interrupted writes left in a directory. No other process may be writing to it."""
    for path in directory.glob(".*.partial"):
        shutil.rmtree(path) if path.is_dir() else path.unlink()


def fresh(target: Path) -> Path:
    """Create an empty directory next to `target`, to be filled and published."""
    temporary = partial(target)
    shutil.rmtree(temporary, ignore_errors=True)
    make_directory(target.parent)
    temporary.mkdir()
    return temporary


def publish(target: Path) -> None:
    """Rename the directory that was filled at `fresh(target)` to `target`, which it replaces.

    Raises:
        OSError: the disk failed; `target` is as it was.
    """
    temporary, old = partial(target), target.with_name(f".{target.name}.old.partial")
    sync_tree(temporary)
    if target.exists():
        shutil.rmtree(old, ignore_errors=True)
        target.rename(old)
    temporary.rename(target)
    sync_directory(target.parent)
    shutil.rmtree(old, ignore_errors=True)


def write_atomic(path: Path, text: str) -> None:
    """Write a file: all of `text`, or the file stays as it was."""
    replace(path, text.encode())


def append(file: int, data: bytes) -> None:
    """Append bytes to an open file and fsync it.

    Raises:
        OSError: not all bytes could be written (a full disk); the file is as it was.
    """
    size = os.fstat(file).st_size
    try:
        write_all(file, data)
        os.fsync(file)
    except OSError:
        os.ftruncate(file, size)
        raise


def sync_tree(directory: Path) -> None:
    """Fsync every file and every directory below `directory`."""
    for path in files(directory):
        sync(path)
    for inner in sorted({directory, *(p for p in directory.rglob("*") if p.is_dir())}, reverse=True):
        sync_directory(inner)
