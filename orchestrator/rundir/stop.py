"""Request to end a run: the file RUN/stop. Signals, `rlhf stop` and `touch` create it, and the driver looks for it.

    rlhf stop, from any node ──┐
    SIGTERM, Ctrl-C ───────────┼──► RUN/stop ──► the driver ends after the update it is in ──► checkpoint, exit.json
    touch RUN/stop ────────────┘

The first request counts; further ones change nothing. A request is for the command that runs (`rlhf run` or
`rlhf resume`) with all its attempts: also while the command waits for places, loads models or is between two attempts.
A command removes what it finds when it starts (`withdraw_earlier`), and an attempt that has ended as requested removes
the file.
"""

from __future__ import annotations

import getpass
import json
import os
import socket
import time
import uuid
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

from orchestrator.errors import Problem, ResumeError
from orchestrator.rundir.directory import RunDirectory
from orchestrator.signals import Cause, Stop

STOP = "stop"
MARK = "RLHF_ATTEMPT_MARK"
"""Environment variable of an attempt's driver under `--attempts`, inherited by all processes that it starts here."""

POLL_S = 0.5


class StopFile:
    """The file `stop` in the directory of a run."""

    def __init__(self, directory: Path) -> None:
        self.path = directory / STOP

    def request(self, *, by: str, cause: Cause = "user", signal: str = "") -> Stop:
        """Ask for the end of the run, unless somebody has asked before. Return the first request.

        Raises:
            OSError: the file cannot be created.
        """
        stop = Stop(by=by, cause=cause, signal=signal, time=round(time.time(), 3))
        aside = self.path.with_name(f".{STOP}-{uuid.uuid4().hex}.partial")
        try:
            aside.write_text(json.dumps(asdict(stop)) + "\n")
            try:
                os.link(aside, self.path)  # with its content, and not over that of somebody else
            except FileExistsError:
                return self.read() or stop
            except OSError:  # a file system without links: whoever looks at the wrong moment sees an empty file
                with suppress(FileExistsError), self.path.open("x") as file:
                    file.write(json.dumps(asdict(stop)) + "\n")
        finally:
            aside.unlink(missing_ok=True)
        return self.read() or stop

    def read(self) -> Stop | None:
        """Return the request; None if there is none. A file that says nothing counts, too: `touch` has created it."""
        try:
            # The name is looked up in a listing: NFS may deny a new name for a minute, but not in a new listing.
            if STOP not in os.listdir(self.path.parent):
                return None
            at, text = self.path.stat().st_mtime, self.path.read_bytes()
        except OSError:
            return None
        try:
            body = json.loads(text)
            cause: Cause = "preempted" if body["cause"] == "preempted" else "user"
            return Stop(by=str(body["by"]), cause=cause, signal=str(body["signal"]), time=float(body["time"]))
        except (ValueError, KeyError, TypeError):
            return Stop(by=f"the file {STOP} in the run directory", cause="user", signal="", time=at)

    def withdraw(self) -> None:
        """Remove the request, if there is one."""
        with suppress(OSError):
            self.path.unlink(missing_ok=True)


def request_stop(directory: RunDirectory, *, by: str = "", cause: Cause = "user") -> Stop:
    """Ask for the end of a run after the update it is in, with a checkpoint. Return the first request.

    Args:
        by: who asks; empty: the user of this process and the machine.
        cause: "user", or "preempted" if a scheduler needs the machines.

    Raises:
        ResumeError: the run has ended, and its model is written.
        OSError: the file cannot be created.
    """
    if directory.is_complete and directory.holder() is None:
        why = "it is complete: its model is written"
        raise ResumeError(Problem(what="there is nothing to stop", where=str(directory.path), why=why))
    return StopFile(directory.path).request(by=by or this_user(), cause=cause)


def wait_for_end(
    directory: RunDirectory,
    seconds: float,
    *,
    sleep: Callable[[float], None] = time.sleep,
    clock: Callable[[], float] = time.monotonic,
) -> dict[str, Any] | None:
    """Wait until the newest attempt of a run has written exit.json, and return its content; None after `seconds`.

    An attempt that was killed writes none. exit.json of an earlier attempt does not count.
    """
    until = clock() + seconds
    while True:
        body = directory.read_exit()
        if body is not None and body.get("attempt") == directory.last_attempt:
            return body
        if clock() >= until:
            return None
        sleep(min(POLL_S, max(0.0, until - clock())))


def withdraw_earlier(directories: Iterable[Path]) -> None:
    """Remove requests that came before this command: it was started after them.

    A run that a driver holds keeps its request, and so does a run whose supervisor has started this process.
    """
    if MARK in os.environ:
        return
    for path in directories:
        directory = RunDirectory(path.expanduser().absolute())
        if directory.holder() is None:
            StopFile(directory.path).withdraw()


def requested(directories: Iterable[Path]) -> Stop | None:
    """Return the first request for one of several runs; None if there is none."""
    return next((stop for path in directories if (stop := StopFile(path.expanduser().absolute()).read())), None)


def this_user() -> str:
    """Return the user of this process and the machine, such as `alice on node-3`."""
    try:
        user = getpass.getuser()
    except (OSError, KeyError):  # a container may run under an id that has no name
        user = f"user {os.getuid()}"
    return f"{user} on {socket.gethostname()}"
