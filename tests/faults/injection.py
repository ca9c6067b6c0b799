"""Disk faults, injected between the product and the kernel by wrapping functions of `os`.

    kill at operation n          SIGKILL before it; for a write, optionally after half of its bytes
    power cut at operation n     SIGKILL, and everything that was not fsynced is lost: bytes and names
    full disk after n bytes      ENOSPC, after a partial write
    broken disk                  EIO

Operations are those by which the product changes files: write, fsync, rename, truncate, remove, create a directory.
Files that other libraries write by themselves (weights by safetensors, samples by parquet) are seen when they are
fsynced or renamed.
"""

from __future__ import annotations

import errno
import os
import random
import shutil
import signal
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

BY_PATH = ("rename", "replace", "truncate", "unlink", "rmdir", "mkdir", "symlink")
BY_FILE = ("write", "fsync", "ftruncate")
BY_THE_CLOCK = ("progress.json", ".progress.json.partial")
"""Files that a thread writes now and then. They are not counted: the n-th operation is the same one in every run."""


class Disk:
    """Watcher of all file operations below `root`. `operations` is their number so far."""

    def __init__(self, root: Path) -> None:
        self.root, self.operations, self.log = str(root), 0, list[str]()
        self.kill_at: int | None = None
        self.half = False  # kill in the middle of a write instead of before it
        self.bytes_left: int | None = None  # None: no limit
        self.full_below = ""  # count bytes only in paths that contain this
        self.broken_below: str | None = None  # writes fail in paths that contain this; None: in no path
        self.on_kill: Callable[[], None] = lambda: None
        self.on_fsync: Callable[[int], None] = lambda file: None
        self._real = {name: getattr(os, name) for name in (*BY_PATH, *BY_FILE)}

    @contextmanager
    def watched(self) -> Iterator[None]:
        for name in BY_PATH:
            setattr(os, name, self._by_path(name))
        for name in BY_FILE:
            setattr(os, name, self._by_file(name))
        try:
            yield
        finally:
            for name, function in self._real.items():
                setattr(os, name, function)

    def _by_path(self, name: str) -> Callable[..., Any]:
        def operate(path: Any, *args: Any, **kwargs: Any) -> Any:
            at = kwargs.get("dir_fd")
            place = os.path.join(os.readlink(f"/proc/self/fd/{at}"), path) if at is not None else str(path)
            if self._is_below_root(str(args[0]) if name == "symlink" else place):
                self._count(name, place)
            return self._real[name](path, *args, **kwargs)

        return operate

    def _by_file(self, name: str) -> Callable[..., Any]:
        def operate(file: int, *args: Any) -> Any:
            place = os.readlink(f"/proc/self/fd/{file}")
            if not self._is_below_root(place):
                return self._real[name](file, *args)
            if name == "write":
                return self._write(file, place, args[0])
            self._count(name, place)
            result = self._real[name](file, *args)
            if name == "fsync":
                self.on_fsync(file)
            return result

        return operate

    def _write(self, file: int, place: str, data: Any) -> int:
        killed = self.operations == self.kill_at
        if killed and self.half:
            self._real["write"](file, bytes(data)[: len(data) // 2])
        self._count("write", place)
        if self.broken_below is not None and self.broken_below in place:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        if self.bytes_left is not None and self.full_below in place:
            data = bytes(data)[: self.bytes_left]
            self.bytes_left -= len(data)
            if not data:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))  # without a file name, as the system does
        written: int = self._real["write"](file, data)
        return written

    def _count(self, name: str, place: str) -> None:
        if self.operations == self.kill_at:
            self.kill_at = None
            self.on_kill()
            os.kill(os.getpid(), signal.SIGKILL)
        self.operations += 1
        self.log.append(f"{name} {os.path.relpath(place, self.root)}")

    def _is_below_root(self, place: str) -> bool:
        path = os.path.abspath(place)
        is_below = path == self.root or path.startswith(self.root + os.sep)
        return is_below and os.path.basename(path) not in BY_THE_CLOCK


class FakeDisk:
    """Model of the files that survive a power cut.

    Every file keeps the bytes, and every directory the names, of its last fsync. Later changes may survive as well: a
    part of the bytes appended to a file, or the newer names of a directory.
    """

    def __init__(self, disk: Disk, survivors: Path, seed: int) -> None:
        self._root, self._survivors, self._random = Path(disk.root), survivors, random.Random(seed)
        self._bytes = dict[int, bytes]()  # by inode
        self._names = dict[int, dict[str, int]]()
        self._directories = set[int]()
        self._held = list[int]()  # open files, so that no inode is reused
        disk.on_fsync, disk.on_kill = self._fsynced, self._write_survivors

    def _fsynced(self, file: int) -> None:
        status = os.fstat(file)
        if status.st_ino not in self._bytes and status.st_ino not in self._names:
            self._held.append(os.dup(file))
        if stat.S_ISDIR(status.st_mode):
            self._names[status.st_ino] = _names(Path(os.readlink(f"/proc/self/fd/{file}")))
            self._directories.add(status.st_ino)
        else:
            self._bytes[status.st_ino] = Path(os.readlink(f"/proc/self/fd/{file}")).read_bytes()

    def _write_survivors(self) -> None:
        if not self._root.exists():  # cut at the first operation, which creates it
            self._survivors.mkdir()
            return
        now = {entry.stat(follow_symlinks=False).st_ino: entry for entry in self._root.rglob("*")}
        inode = self._root.stat().st_ino
        self._restore(inode, self._root, self._survivors, now)

    def _restore(self, inode: int, current: Path | None, target: Path, now: dict[int, Path]) -> None:
        target.mkdir()
        lasting = self._names.get(inode, {})
        present = _names(current) if current is not None else lasting
        for name, child in (lasting if self._random.random() < 0.5 else present).items():
            there = now.get(child)
            if there is not None and there.is_symlink():
                (target / name).symlink_to(os.readlink(there))
            elif (there is not None and there.is_dir()) or child in self._directories:
                self._restore(child, there, target / name, now)
            else:
                (target / name).write_bytes(self._content(child, there))

    def _content(self, inode: int, there: Path | None) -> bytes:
        lasting = self._bytes.get(inode, b"")
        present = there.read_bytes() if there is not None else lasting
        if present.startswith(lasting):  # an append: a part of it may have survived
            return present[: self._random.randint(len(lasting), len(present))]
        return self._random.choice([lasting, present])


def _names(directory: Path) -> dict[str, int]:
    return {entry.name: entry.stat(follow_symlinks=False).st_ino for entry in os.scandir(directory)}


def swap(directory: Path, survivors: Path) -> None:
    """Replace the directory by its survivors, as after switching the machine on again."""
    shutil.rmtree(directory, ignore_errors=True)
    survivors.rename(directory)
