"""Lock of a run directory: it gives the run to one driver, and tells everybody else which one.

The kernel releases the lock of a process that has ended, however it ended. On NFS the lock holds between machines, if
the server keeps locks; the lock of a machine that is cut off is released after its lease (90 seconds by default).
Storage without locks between machines lets two drivers in: the fence then ends the one that was there first.
"""

from __future__ import annotations

import fcntl
import os
import socket
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from orchestrator.errors import BadInput, Problem, Superseded

Fence = Callable[[], None]
"""Function that raises Superseded if another driver has taken over the run."""

POLL_S = 1.0
GLANCE_S = 0.01
READ_BYTES = 400


def holder(lock: Path) -> str | None:
    """Return the process that holds a lock, such as `process 4711 on node-3`; None if no process does."""
    try:
        handle = os.open(lock, os.O_RDONLY)
    except OSError:
        return None
    try:
        fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return _named_in(os.read(handle, READ_BYTES))
    finally:
        os.close(handle)
    return None


def job_of(lock: Path) -> str | None:
    """Return the id of the job whose process holds a lock, or held it last; None if it belongs to no job."""
    with suppress(OSError):
        lines = lock.read_text("utf-8", "replace").splitlines()
        return lines[2] if len(lines) > 2 else None
    return None


@contextmanager
def hold(lock: Path, on_wait: Callable[[str], None] | None = None, *, job: str | None = None) -> Iterator[Fence]:
    """Hold a lock and yield its fence.

    No other process can hold the lock meanwhile, as long as the file system keeps it. Shared storage may release the
    lock of a machine that is cut off, and the driver there may wake up after another one has taken over. The fence then
    raises Superseded.

    Args:
        on_wait: called every second while another process holds the lock, with the name of that process. It may raise,
            to end the wait. None: do not wait.
        job: id of the job that this process belongs to; None: it belongs to none.

    Raises:
        BadInput: another process holds the lock, and `on_wait` is None; the error names it.
    """
    handle = _wait(lock, on_wait)
    try:
        # The second line makes the content unique: process 1 of two containers may be on hosts of the same name.
        lines = [f"process {os.getpid()} on {socket.gethostname()}", uuid.uuid4().hex, *([job] if job else [])]
        mine = "\n".join(lines).encode()
        os.ftruncate(handle, 0)
        os.write(handle, mine)
        os.fsync(handle)

        def fence() -> None:
            with suppress(FileNotFoundError):  # removed, but no other process has taken it
                current = lock.read_bytes()
                if current != mine:
                    raise Superseded(str(lock.parent), _named_in(current))

        yield fence
    finally:
        os.close(handle)


def _wait(lock: Path, on_wait: Callable[[str], None] | None) -> int:
    """Return a handle that holds the lock."""
    while (handle := _try(lock)) is None:
        name = holder(lock)
        if name is None:  # released meanwhile, or held for a moment by a reader that looks who holds it
            time.sleep(GLANCE_S)
            continue
        if on_wait is None:
            why, fix = f"{name} holds the run's lock", "wait for it or stop it, or give this run another name"
            raise BadInput(Problem(what="is in use", where=str(lock.parent), why=why, fix=fix))
        on_wait(name)
        time.sleep(POLL_S)
    return handle


def _try(lock: Path) -> int | None:
    """Return a handle that holds the lock; None if another process holds it, or its directory was moved meanwhile."""
    handle = os.open(lock, os.O_RDWR | os.O_CREAT, 0o644)
    is_held = False
    try:
        with suppress(BlockingIOError, FileNotFoundError):
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            is_held = os.path.samestat(os.fstat(handle), os.stat(lock))
        return handle if is_held else None
    finally:
        if not is_held:
            os.close(handle)


def _named_in(content: bytes) -> str:
    """Return the process that the content of a lock file names."""
    return content.decode("utf-8", "replace").partition("\n")[0].strip() or "another process"
