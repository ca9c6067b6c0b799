"""Attempt after attempt, for as long as another one can help: `--attempts N`.

    supervisor ──starts──► rlhf run …  (a process group of its own)
        ▲                      │ exit code, exit.json, ledger
        └── go on? ◄───────────┘

The attempt is a child and does all the work. When it ends, the supervisor sees to it that none of its processes stay
behind, says in exit.json how it ended where it could not do so itself, and decides whether to start the next one, which
goes on from the newest checkpoint.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import IO

from orchestrator.errors import RlhfError, Superseded
from orchestrator.rundir.directory import RunDirectory
from orchestrator.rundir.incidents import Action, Incident, write_incident
from orchestrator.rundir.ledger import Fact, read_ledger

MARK = "RLHF_ATTEMPT_MARK"
"""A name in the environment of an attempt and of all that it starts on this machine: what bears its value is ours."""

CLEAN_UP_S = 15.0  # for processes to notice that their driver is gone, before they are killed

PASSING = {
    "worker_failed",
    "deadline",
    "no_heartbeat",
    "host_oom",
    "limit_reached",
    "version_mismatch",
    "not_finite",
    "fleet_exhausted",
    "cluster_lost",
    "killed",
    "driver_died",
}
"""Causes that another attempt may not meet; what is wrong with the recipe or the disk, it would."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Ended:
    """How an attempt ended. Example: `Ended(cause="worker_failed", exit_code=4, reached=17, run="arith-grpo")`."""

    cause: str
    exit_code: int
    reached: int  # turns that it had done when it ended
    run: str = ""  # of a recipe with several stages, the one it was at; empty: it came to none


@dataclass(frozen=True, kw_only=True, slots=True)
class Verdict:
    """Whether to start another attempt, and why or why not."""

    go_on: bool
    reason: str


def judge(ended: Ended, before: Ended | None, *, attempts_left: int) -> Verdict:
    """The pure rule. `before` is how the attempt before it ended; None: it was the first."""
    if ended.cause not in PASSING:
        return Verdict(go_on=False, reason=f"another attempt would meet the same: {ended.cause}")
    if before is not None and (before.run, before.reached) == (ended.run, ended.reached):
        where = f"after step {ended.reached}" if ended.reached else "before the first step was done"
        return Verdict(go_on=False, reason=f"two attempts in a row ended {where}, without any progress")
    if not attempts_left:
        return Verdict(go_on=False, reason="no attempts are left")
    return Verdict(go_on=True, reason=f"{attempts_left} attempts left" if attempts_left > 1 else "one attempt left")


class Supervisor:
    """Runs `command` until it succeeds or another attempt cannot help. `directories`: of the command's stages."""

    def __init__(
        self,
        command: Sequence[str],
        directories: Sequence[Path],
        *,
        attempts: int,
        say: Callable[[str], None],
        output: IO[bytes] | None = None,
    ) -> None:
        """`output`: where all that the attempts print goes; None: to where this process prints."""
        self._command, self._attempts, self._say, self._output = list(command), attempts, say, output
        self._directories = [RunDirectory(path.expanduser().absolute()) for path in directories]
        self._child: subprocess.Popen[bytes] | None = None
        self._asked: int | None = None  # the signal by which someone asked for the end

    def run(self) -> int:
        """The exit code of the last attempt; 128 + its number when a signal killed it."""
        before: Ended | None = None
        with self._signals():
            for number in range(1, self._attempts + 1):
                code = self._attempt()
                if code == 0 or self._asked is not None:
                    return _shell_code(code)
                ended, directory = self._ended(code)
                verdict = judge(ended, before, attempts_left=self._attempts - number)
                self._tell(ended, directory, verdict, number)
                if not verdict.go_on:
                    return ended.exit_code
                before = ended
        raise AssertionError("the last attempt has none left after it")

    @property
    def stopped_by(self) -> str | None:
        """The signal by which someone asked for the end, and which the child got, too."""
        return None if self._asked is None else signal.Signals(self._asked).name

    # ---------------------------------------------------------------------------------------- a child

    def _attempt(self) -> int:
        mark = uuid.uuid4().hex
        self._known = {d.path: d.last_attempt for d in self._directories}
        environment, out = {**os.environ, MARK: mark}, self._output
        self._child = child = subprocess.Popen(
            self._command, env=environment, process_group=0, stdout=out, stderr=subprocess.STDOUT if out else None
        )
        if self._asked is not None:  # it came just before there was somebody to hand it on to
            child.send_signal(self._asked)
        try:
            return child.wait()
        finally:
            if child.poll() is None:
                child.kill()
                child.wait()
            _clean_up(mark, child.pid)

    @contextmanager
    def _signals(self) -> Iterator[None]:
        """Ctrl-C and SIGTERM are for the child: it is in a group of its own, so that it gets each of them once."""
        numbers = (signal.SIGINT, signal.SIGTERM)
        before = {number: signal.signal(number, self._hand_on) for number in numbers}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _hand_on(self, number: int, frame: FrameType | None) -> None:
        self._asked = number
        if self._child is not None and self._child.poll() is None:
            self._child.send_signal(number)

    # ---------------------------------------------------------------------------------------- its end

    def _ended(self, code: int) -> tuple[Ended, RunDirectory | None]:
        """How the child ended, by what it wrote, or else by what can be seen; and the stage it was at."""
        directory = next((d for d in reversed(self._directories) if d.last_attempt > self._known[d.path]), None)
        if directory is None:  # it never came to a run: the recipe was refused, or it was killed before
            cause = "killed" if code < 0 else "bad_input" if code == 2 else "cluster" if code == 3 else "error"
            return Ended(cause=cause, exit_code=_shell_code(code), reached=0), None
        reached = steps_reached(directory)
        if code == Superseded.exit_code:  # what lies there is another driver's
            return Ended(cause=Superseded.cause, exit_code=code, reached=reached, run=directory.name), None
        found = directory.read_exit()
        if found is None or found.get("attempt") != directory.last_attempt:
            self._write_exit(directory, code, reached)
            found = directory.read_exit() or {}
        cause = str(found.get("cause", "error"))
        return Ended(cause=cause, exit_code=_shell_code(code), reached=reached, run=directory.name), directory

    def _write_exit(self, directory: RunDirectory, code: int, reached: int) -> None:
        """The driver was killed, or Ray ended it: it could say nothing."""
        assert self._child is not None
        pid, killed = self._child.pid, code < 0
        if killed:
            message = f"the driver's process (pid {pid}) was killed by {signal.Signals(-code).name}"
        else:
            message = f"the driver's process (pid {pid}) ended with code {code} and without a word"
            message += ": Ray ends it so when the cluster is lost"
        with suppress(OSError):
            directory.write_exit(
                cause="killed" if killed else "driver_died",
                message=message,
                exit_code=_shell_code(code),
                attempt=directory.last_attempt,
                step=reached,
                first_cause={"role": "driver", "rank": None, "pid": pid, "log": ""},
            )

    def _tell(self, ended: Ended, directory: RunDirectory | None, verdict: Verdict, number: int) -> None:
        goes_on = f"starting attempt {number + 1} of {self._attempts}" if verdict.go_on else "giving up"
        self._say(f"attempt {number} of {self._attempts} ended ({ended.cause}); {verdict.reason}: {goes_on}")
        if directory is None:
            return
        action: Action = "next attempt" if verdict.go_on else "gave up"
        what = str((directory.read_exit() or {}).get("message", ended.cause)).splitlines()[0]
        with suppress(OSError):
            write_incident(
                directory.incidents,
                Incident(
                    attempt=directory.last_attempt,
                    step=ended.reached,
                    what=what,
                    action=action,
                    detail=verdict.reason,
                ),
            )


def steps_reached(directory: RunDirectory) -> int:
    """Turns that were done when its last attempt ended, by the ledger; 0 when that cannot be read."""
    try:
        records = read_ledger(directory.ledger)[0]
    except RlhfError:
        return 0
    own = [r.step for r in records if r.attempt == directory.last_attempt and r.fact in (Fact.attempt, Fact.committed)]
    return max(own, default=0)


def child_command(*arguments: str) -> list[str]:
    """`rlhf ARGUMENTS`, by the interpreter that runs now."""
    return [sys.executable, "-P", "-m", "orchestrator.cli", *arguments]


def _shell_code(code: int) -> int:
    return code if code >= 0 else 128 - code


def _clean_up(mark: str, pid: int) -> None:
    """End what an attempt on this machine left behind; its Ray processes notice by themselves, unless they hang."""
    until = time.monotonic() + CLEAN_UP_S
    while (left := _marked(mark)) and time.monotonic() < until:
        time.sleep(0.1)
    for process in left:
        with suppress(ProcessLookupError, PermissionError):
            os.kill(process, signal.SIGKILL)
    for segment in Path("/dev/shm").glob(f"rlhf-*-{pid}-weights"):  # that its driver could not remove
        segment.unlink(missing_ok=True)


def _marked(mark: str) -> list[int]:
    """Processes that bear this mark in the environment they were started with."""
    wanted, found = f"{MARK}={mark}".encode(), []
    for process in Path("/proc").iterdir():
        if process.name.isdigit():
            with suppress(OSError):  # it ended, or is not ours
                if wanted in (process / "environ").read_bytes().split(b"\0"):
                    found.append(int(process.name))
    return found
