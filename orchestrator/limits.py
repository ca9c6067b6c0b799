"""What the system grants a process: how many files it may have open, and how many processes its user may start."""

from __future__ import annotations

import errno
import os
import re
import resource
from collections.abc import Callable
from typing import Self

from orchestrator.errors import ClusterError, LimitReached, Problem, Problems

NEEDED = {"open files": 1024, "processes": 1024}
"""For a small Ray cluster on one machine: sockets between all of its processes, and dozens of threads in each."""
PLENTY = 65536
LONGEST_SOCKET = 107  # bytes of a socket's path: sun_path without its end
RAISE = "raise it: ulimit -n (open files) or ulimit -u (processes), or LimitNOFILE and TasksMax of the service"
REACHED = re.compile(r"\[Errno (23|24)\]|Too many open files|can't start new thread|\[Errno 11\] Resource temporarily")
_LIMITS = {"open files": resource.RLIMIT_NOFILE, "processes": resource.RLIMIT_NPROC}


def refuse_low(get: Callable[[int], tuple[int, int]] = resource.getrlimit) -> None:
    """Raises ClusterError for limits that a cluster on this machine would reach. What this process may raise by itself,
    it raises, for itself and for all that it starts."""
    problems = Problems()
    for name, number in _LIMITS.items():
        soft, hard = get(number)
        if soft == resource.RLIM_INFINITY or (name == "processes" and os.geteuid() == 0):
            continue  # the system holds nobody's processes against root
        ceiling = PLENTY if hard == resource.RLIM_INFINITY else min(hard, PLENTY)
        if ceiling < NEEDED[name]:
            why = f"the limit is {hard}, and a Ray cluster on this machine takes {NEEDED[name]}"
            problems.add(f"too few {name}", where="this machine", why=why, fix=RAISE)
        elif soft < ceiling:
            resource.setrlimit(number, (ceiling, hard))
    if problems:
        raise ClusterError(problems)


def ray_directory() -> str:
    """Where Ray puts its sockets, in a directory of its own."""
    return os.environ.get("RAY_TMPDIR") or os.environ.get("TMPDIR") or "/tmp"


def long_sockets(directory: str, pid: int | None = None) -> list[Problem]:
    """What keeps Ray from having its sockets below `directory`: the system takes no longer paths. Ray itself says so
    only when half of it is running. `pid` None: of this process."""
    session = f"session_2000-01-01_00-00-00_000000_{os.getpid() if pid is None else pid}"
    socket = f"{directory}/ray/{session}/sockets/plasma_store"
    size = len(os.fsencode(socket))
    if size <= LONGEST_SOCKET:
        return []
    return [
        Problem(
            what=f"the path of the temporary directory is {size - LONGEST_SOCKET} bytes too long",
            where=f"{'RAY_TMPDIR' if os.environ.get('RAY_TMPDIR') else 'TMPDIR'} = {directory}",
            why=f"Ray's sockets in it would have paths of {size} bytes, and the system takes {LONGEST_SOCKET}",
            fix="set a shorter TMPDIR, for example TMPDIR=/tmp",
        )
    ]


def explain(error: BaseException) -> BaseException:
    """An error of this process that is one of these limits, as LimitReached; any other as it is."""
    files = isinstance(error, OSError) and error.errno in (errno.EMFILE, errno.ENFILE)
    if not files and not (isinstance(error, RuntimeError | BlockingIOError) and REACHED.search(str(error))):
        return error
    what = "open files" if files else "processes"
    return LimitReached(what, resource.getrlimit(_LIMITS[what])[0], told=str(error), fix=RAISE)


class Spare:
    """Two files that are kept open for nothing, so that a process at its limit can still write how it ended."""

    def __init__(self) -> None:
        self._files = [os.open(os.devnull, os.O_RDONLY) for _ in range(2)]

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.give_up()

    def give_up(self) -> None:
        while self._files:
            os.close(self._files.pop())
