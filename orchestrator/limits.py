"""Limits of the operating system: open files, processes, and the length of socket paths."""

from __future__ import annotations

import errno
import os
import re
import resource
from collections.abc import Callable
from typing import Self

from orchestrator.errors import ClusterError, LimitReached, Problem, Problems

NEEDED = {"open files": 1024, "processes": 1024}
"""Minimum for a Ray cluster on one machine: sockets between all of its processes, and dozens of threads in each."""
PLENTY = 65536
LONGEST_SOCKET = 107  # bytes of a socket's path: sun_path without the final NUL
RAISE = "raise it: ulimit -n (open files) or ulimit -u (processes), or LimitNOFILE and TasksMax of the service"
REACHED = re.compile(r"\[Errno (23|24)\]|Too many open files|can't start new thread|\[Errno 11\] Resource temporarily")
_LIMITS = {"open files": resource.RLIMIT_NOFILE, "processes": resource.RLIMIT_NPROC}


def refuse_low(get: Callable[[int], tuple[int, int]] = resource.getrlimit) -> None:
    """Raise ClusterError if a limit is too low for a cluster on this machine.

    Soft limits are raised where the process may do so, for itself and for the processes that it starts.
    """
    problems = Problems()
    for name, number in _LIMITS.items():
        soft, hard = get(number)
        if soft == resource.RLIM_INFINITY or (name == "processes" and os.geteuid() == 0):
            continue  # the system does not limit root's processes
        ceiling = PLENTY if hard == resource.RLIM_INFINITY else min(hard, PLENTY)
        if ceiling < NEEDED[name]:
            why = f"the limit is {hard}, and a Ray cluster on this machine needs {NEEDED[name]}"
            problems.add(f"too few {name}", where="this machine", why=why, fix=RAISE)
        elif soft < ceiling:
            resource.setrlimit(number, (ceiling, hard))
    if problems:
        raise ClusterError(problems)


def ray_directory() -> str:
    """Return the directory below which Ray creates its sockets."""
    return os.environ.get("RAY_TMPDIR") or os.environ.get("TMPDIR") or "/tmp"


def long_sockets(directory: str, pid: int | None = None) -> list[Problem]:
    """Return a problem if the sockets of Ray below `directory` would have paths that are too long for the system.

    Ray itself reports this only after a part of it has started. `pid`: of the driver (default: this process).
    """
    session = f"session_2000-01-01_00-00-00_000000_{os.getpid() if pid is None else pid}"
    socket = f"{directory}/ray/{session}/sockets/plasma_store"
    size = len(os.fsencode(socket))
    if size <= LONGEST_SOCKET:
        return []
    return [
        Problem(
            what=f"the path of the temporary directory is {size - LONGEST_SOCKET} bytes too long",
            where=f"{'RAY_TMPDIR' if os.environ.get('RAY_TMPDIR') else 'TMPDIR'} = {directory}",
            why=f"Ray's sockets in it would have paths of {size} bytes, and the system allows {LONGEST_SOCKET}",
            fix="set a shorter TMPDIR, for example TMPDIR=/tmp",
        )
    ]


def explain(error: BaseException) -> BaseException:
    """Return LimitReached for an error that one of these limits caused in this process, else the error itself."""
    files = isinstance(error, OSError) and error.errno in (errno.EMFILE, errno.ENFILE)
    if not files and not (isinstance(error, RuntimeError | BlockingIOError) and REACHED.search(str(error))):
        return error
    what = "open files" if files else "processes"
    return LimitReached(what, resource.getrlimit(_LIMITS[what])[0], reason=str(error), fix=RAISE)


class Spare:
    """Two spare open files. A process at its limit closes them, so that it can still write how it ended."""

    def __init__(self) -> None:
        self._files = [os.open(os.devnull, os.O_RDONLY) for _ in range(2)]

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.give_up()

    def give_up(self) -> None:
        while self._files:
            os.close(self._files.pop())
