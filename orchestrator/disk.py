"""The only place where state is made to last: whole or not at all, and still there after a power cut. (What workers
write by themselves lasts by `workers/files/durable.py`, which this builds on.)

    write_atomic        a file: written aside, fsynced, renamed
    publish             a directory: written aside by whoever, every file and name fsynced, renamed
    append              bytes at the end of an open file: all of them, or the file as it was

A rename is the moment something exists; until then it lies under a name that starts with a dot and ends in `.partial`,
which nobody reads and the next attempt removes.
"""

from __future__ import annotations

import errno
import hashlib
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from orchestrator.errors import DiskFailed, WorkerFailed
from workers.files.durable import partial, replace, sync_directory, write, write_all

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
# What a worker's traceback ends with when torch or the system could not write.
FULL_IN_A_WORKER = re.compile(r"No space left on device|Disk quota exceeded|PytorchStreamWriter failed writing file")
# Its last line when the disk is broken, and the file where the system names one.
BROKEN_IN_A_WORKER = re.compile(
    r"\[Errno (?:5|30)\] (?P<why>Input/output error|Read-only file system)(?:: '(?P<place>[^'\n]+)')?$"
)


@contextmanager
def explained(directory: Path, resume: str) -> Iterator[None]:
    """Errors of the disk that `directory` lies on leave it as DiskFailed, which says how to go on."""
    try:
        yield
    except (OSError, WorkerFailed) as error:
        told = explain(error, directory, resume)
        if told is error:
            raise
        raise told from error


def explain(error: BaseException, directory: Path, resume: str) -> BaseException:
    """An error of the disk as DiskFailed; any other as it is."""
    if isinstance(error, OSError) and error.errno in (*FULL, *BROKEN):
        place, full, why = Path(error.filename or directory), error.errno in FULL, str(error.strerror)
        if not full and not place.is_relative_to(directory):
            return error  # not what the run writes
    elif isinstance(error, WorkerFailed) and (found := FULL_IN_A_WORKER.search(error.traceback)):
        place, full, why = directory, True, f"{error.role} rank {error.rank}: {found[0]}"
    elif isinstance(error, WorkerFailed) and (found := BROKEN_IN_A_WORKER.search(error.traceback)):
        place, full, why = Path(found["place"] or directory), False, f"{error.role} rank {error.rank}: {found['why']}"
        if not place.is_relative_to(directory):
            return error  # not what the run writes
    else:
        return error
    return DiskFailed(why, place=str(place), full=full, free_bytes=_free_bytes(place), resume=resume)


def probe(directory: Path) -> None:
    """Write and remove a block in `directory`. Raises OSError when that cannot be done: better now than in an hour."""
    make_directory(directory)
    path = partial(directory / "probe")
    write(path, bytes(4096))
    path.unlink()


def _free_bytes(place: Path) -> int:
    there = next((p for p in (place, *place.parents) if p.exists()), Path("/"))
    return shutil.disk_usage(there).free


def is_partial(path: Path) -> bool:
    """Whether it is what an interrupted write left behind."""
    return path.name.startswith(".") and path.name.endswith(".partial")


def clear(directory: Path) -> None:
    """Remove what interrupted writes left in a directory that nobody else is writing to."""
    for path in directory.glob(".*.partial"):
        shutil.rmtree(path) if path.is_dir() else path.unlink()


def fresh(target: Path) -> Path:
    """An empty directory aside of `target`, to be filled and published."""
    aside = partial(target)
    shutil.rmtree(aside, ignore_errors=True)
    make_directory(target.parent)
    aside.mkdir()
    return aside


def make_directory(path: Path) -> None:
    """`path` and what it lies in, each there after a power cut."""
    if not path.is_dir():
        make_directory(path.parent)
        path.mkdir(exist_ok=True)
        sync_directory(path.parent)


def publish(target: Path) -> None:
    """Give the directory that was filled at `fresh(target)` its name; what bore it before is gone afterwards.

    Raises:
        OSError: the disk failed; `target` is as it was.
    """
    aside, old = partial(target), target.with_name(f".{target.name}.old.partial")
    sync_tree(aside)
    if target.exists():
        shutil.rmtree(old, ignore_errors=True)
        target.rename(old)
    aside.rename(target)
    sync_directory(target.parent)
    shutil.rmtree(old, ignore_errors=True)


def write_atomic(path: Path, text: str) -> None:
    """The whole text, or what was there before."""
    replace(path, text.encode())


def append(file: int, data: bytes) -> None:
    """Bytes at the end of an open file, on disk when this returns.

    Raises:
        OSError: they could not be written whole (a full disk); the file is as it was.
    """
    size = os.fstat(file).st_size
    try:
        write_all(file, data)
        os.fsync(file)
    except OSError:
        os.ftruncate(file, size)
        raise


def sync_tree(directory: Path) -> None:
    """Every file below `directory` and every name in it survive a power cut."""
    for path in files(directory):
        file = os.open(path, os.O_RDONLY)
        try:
            os.fsync(file)
        finally:
            os.close(file)
    for inner in sorted({directory, *(p for p in directory.rglob("*") if p.is_dir())}, reverse=True):
        sync_directory(inner)


def files(directory: Path) -> Iterator[Path]:
    return (p for p in sorted(directory.rglob("*")) if p.is_file())


def sha256(path: Path) -> str:
    """Of a file's bytes, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
