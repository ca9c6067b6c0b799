"""Shared storage as one worker sees it: the files of a run must be visible from every machine. Light at import.

A file of another machine may appear seconds late on a network file system: everything here waits for LAG_S.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from workers.files import mirror
from workers.files.written import node
from workers.storage import StorageError

LAG_S = 10.0  # for which shared storage may show another machine's files late
POLL_S = 0.25
EVERY_NODE = "output_dir must be on storage that every node sees"


class FilesNotSeen(RuntimeError):
    """Files of the run are not visible on this machine."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Sighting:
    """Answer of a worker on a directory of the run. Example: `Sighting(node="node-7", why="cannot be written")`."""

    node: str
    why: str  # why the directory cannot be used; empty: it can be


class SharesStorage:
    """A worker that reads or writes files of the run, or whose log is among them."""

    def check_storage(self, directory: str, token: str, name: str) -> Sighting:
        """Look for the driver's `token` in a directory, and answer with a copy of it, in the file `name`.

        Nothing is created where the token is not: the directory would then be another one of the same name.
        """
        place = Path(directory)
        if not eventually(lambda: read(place / TOKEN) == token):
            return Sighting(node=node(), why="does not see")
        try:
            (place / name).write_text(token)
        except OSError as error:
            return Sighting(node=node(), why=f"cannot write ({error.strerror}) to")
        return Sighting(node=node(), why="")

    def check_object_storage(self, name: str) -> Sighting:
        """Read the driver's object, which says where it is, and answer with an object beside it: NAME.NODE."""
        mirrored = mirror.of_process()
        assert mirrored is not None
        try:
            if mirrored.storage.get(name) is None:
                return Sighting(node=node(), why="does not see")
            mirrored.storage.put(f"{name}.{node()}", b"seen")
        except StorageError as error:
            return Sighting(node=node(), why=str(error))
        return Sighting(node=node(), why="")

    def settle(self, renamed: Mapping[str, str], deleted: Sequence[str] = ()) -> None:
        """Rename and delete directories on this machine as the driver has done it on its own. Others are left alone."""
        for old, new in renamed.items():
            with mirror.held(Path(new).parent):  # all workers of this machine do this at once
                _rename(Path(old), Path(new))
        for gone in deleted:
            shutil.rmtree(gone, ignore_errors=True)

    def upload(self, directory: str, target: str, names: Sequence[str]) -> None:
        """Upload files of a directory in the background, as those of `target` in the storage of the run."""
        mirror.upload_as(Path(target), Path(directory), names)

    def uploaded(self) -> None:
        """Wait until everything that this worker was told to upload is stored."""
        mirror.flush()

    def sizes_in(self, directory: str, pattern: str) -> Mapping[str, int]:
        """Return the size of each file in a directory whose name matches, as this machine sees it."""
        return {path.name: path.stat().st_size for path in Path(directory).glob(pattern)}


def _rename(old: Path, new: Path) -> None:
    """Rename a directory, if it is there still; what an earlier attempt has left at the new name is deleted."""
    try:
        old.rename(new)
    except FileNotFoundError:  # another process was faster: `new` is complete
        return
    except OSError:
        shutil.rmtree(new)
        old.rename(new)


TOKEN = "token"  # name of the driver's file


def read(path: Path) -> str | None:
    """Return the text of a file; None if it is not there, or unreadable."""
    with suppress(OSError, ValueError):
        return path.read_text()
    return None


def require_files(directory: Path, sizes: Mapping[str, int]) -> None:
    """Wait until this machine sees files of the run.

    Args:
        sizes: bytes of each file, by its name relative to `directory`.

    Raises:
        FilesNotSeen: a file is missing, or has another size.
    """
    if not eventually(lambda: not not_seen(directory, sizes)):
        wrong = not_seen(directory, sizes)
        more = f" and {len(wrong) - 1} more" if len(wrong) > 1 else ""
        raise FilesNotSeen(f"{node()} does not see {directory / wrong[0]}{more}: {EVERY_NODE}")


def not_seen(directory: Path, sizes: Mapping[str, int]) -> list[str]:
    """Return the names of the files that are missing, or have another size."""
    return [name for name, size in sizes.items() if size_of(directory / name) != size]


def size_of(path: Path) -> int | None:
    """Return the size of a file in bytes; None if it is not there."""
    with suppress(OSError):
        return path.stat().st_size
    return None


def eventually(holds: Callable[[], bool], seconds: float | None = None) -> bool:
    """Return whether a condition holds, waiting for it for up to `seconds`; None: LAG_S."""
    until = time.monotonic() + (LAG_S if seconds is None else seconds)
    while not (held := holds()) and time.monotonic() < until:
        time.sleep(POLL_S)
    return held
