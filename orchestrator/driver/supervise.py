"""Supervisor of `--attempts N`: start the next attempt as long as it may help.

    supervisor ──starts──► rlhf run …  (a process group of its own)
        ▲                      │ exit code, exit.json, ledger
        └── retry? ◄───────────┘

The attempt is a child process and does all the work. When it ends, the supervisor ends the processes it left behind,
writes exit.json if the attempt could not, and decides whether to start another attempt, which resumes from the newest
checkpoint. After a request to stop, by a signal or by the file in a run directory, it starts none.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from orchestrator.errors import RlhfError, Superseded
from orchestrator.rundir.directory import RunDirectory
from orchestrator.rundir.incidents import Action, Incident, write_incident
from orchestrator.rundir.ledger import Fact, read_ledger
from orchestrator.rundir.stop import MARK, requested, withdraw_earlier
from orchestrator.signals import ForwardedSignals

CLEAN_UP_S = 15.0  # for processes to notice that their driver has ended, before they are killed

RETRYABLE = {
    "worker_failed",
    "deadline",
    "no_heartbeat",
    "host_oom",
    "limit_reached",
    "version_mismatch",
    "not_finite",
    "fleet_exhausted",
    "cluster_lost",
    "storage_failed",
    "killed",
    "driver_died",
}
"""Causes that another attempt may not hit again. It would hit errors in the recipe or a full disk again."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Ended:
    """End of an attempt.

    Example: `Ended(cause="worker_failed", exit_code=4, reached=17, run="arith-grpo")`.
    """

    cause: str
    exit_code: int
    reached: int  # number of steps done when it ended
    run: str = ""  # name of the run, that is of the stage it was at; empty: it started none


@dataclass(frozen=True, kw_only=True, slots=True)
class Verdict:
    """Decision on whether to start another attempt, with its reason."""

    retry: bool
    reason: str


ASKED = Verdict(retry=False, reason="a stop was asked for")


def judge(ended: Ended, before: Ended | None, *, attempts_left: int) -> Verdict:
    """Decide whether to start another attempt. `before`: end of the previous attempt; None: there was none."""
    if ended.cause in ("user", "preempted"):
        return ASKED
    if ended.cause not in RETRYABLE:
        return Verdict(retry=False, reason=f"another attempt would fail in the same way: {ended.cause}")
    if before is not None and (before.run, before.reached) == (ended.run, ended.reached):
        where = f"after step {ended.reached}" if ended.reached else "before the first step was done"
        return Verdict(retry=False, reason=f"two attempts in a row ended {where}, without any progress")
    if not attempts_left:
        return Verdict(retry=False, reason="no attempts are left")
    return Verdict(retry=True, reason=f"{attempts_left} attempts left" if attempts_left > 1 else "one attempt left")


class Supervisor:
    """Supervisor that runs a command until it succeeds or another attempt cannot help."""

    def __init__(
        self,
        command: Sequence[str],
        directories: Sequence[Path],
        *,
        attempts: int,
        say: Callable[[str], None],
        output: IO[bytes] | None = None,
    ) -> None:
        """Set the command.

        Args:
            directories: run directories of the command's stages, in order.
            attempts: maximum number of attempts.
            say: prints a line.
            output: file for the output of the attempts; None: the output of this process.
        """
        self._command, self._attempts, self._say, self._output = list(command), attempts, say, output
        self._directories = [RunDirectory(path.expanduser().absolute()) for path in directories]
        self._child: subprocess.Popen[bytes] | None = None
        self._signals = ForwardedSignals(lambda: [] if self._child is None else [self._child])

    def run(self) -> int:
        """Run attempts and return the exit code of the last one: 128 + N if signal N killed it."""
        before: Ended | None = None
        # A request that is there already came after this command began: its door has removed earlier ones.
        paths = [directory.path for directory in self._directories]
        with self._signals:
            for number in range(1, self._attempts + 1):
                earlier = {d.path: d.last_attempt for d in self._directories}
                code = self._attempt()
                if code == 0 or self.stopped_by is not None:
                    return _shell_code(code)
                ended, directory = self._read_end(code, earlier)
                verdict = judge(ended, before, attempts_left=self._attempts - number)
                if requested(paths) is not None:  # the attempt failed before it could end as requested
                    verdict = ASKED
                    withdraw_earlier(paths)
                self._report(ended, directory, verdict, number)
                if not verdict.retry:
                    return ended.exit_code
                before = ended
        raise AssertionError("judge allows no attempt after the last one")

    @property
    def stopped_by(self) -> str | None:
        """Name of the signal that asked this process to stop and was forwarded to the child; None if there was none."""
        return self._signals.received

    # ---------------------------------------------------------------------------------------- the child

    def _attempt(self) -> int:
        mark = uuid.uuid4().hex
        environment, out = {**os.environ, MARK: mark}, self._output
        self._child = child = subprocess.Popen(
            self._command, env=environment, process_group=0, stdout=out, stderr=subprocess.STDOUT if out else None
        )
        self._signals.catch_up(child)
        try:
            return child.wait()
        finally:
            if child.poll() is None:
                child.kill()
                child.wait()
            _clean_up(mark, child.pid)

    # ---------------------------------------------------------------------------------------- its end

    def _read_end(self, code: int, earlier: Mapping[Path, int]) -> tuple[Ended, RunDirectory | None]:
        """Return how the child ended, from its exit.json or else its exit code, and the directory of its stage.

        `earlier`: number of the last attempt in each run directory before the child was started.
        """
        directory = next((d for d in reversed(self._directories) if d.last_attempt > earlier[d.path]), None)
        if directory is None:  # it started no run: the recipe was refused, or the child was killed before
            cause = "killed" if code < 0 else "bad_input" if code == 2 else "cluster" if code == 3 else "error"
            return Ended(cause=cause, exit_code=_shell_code(code), reached=0), None
        reached = steps_reached(directory)
        if code == Superseded.exit_code:  # the directory belongs to another driver
            return Ended(cause=Superseded.cause, exit_code=code, reached=reached, run=directory.name), None
        body = directory.read_exit()
        if body is None or body.get("attempt") != directory.last_attempt:
            self._write_exit(directory, code, reached)
            body = directory.read_exit() or {}
        cause = str(body.get("cause", "error"))
        return Ended(cause=cause, exit_code=_shell_code(code), reached=reached, run=directory.name), directory

    def _write_exit(self, directory: RunDirectory, code: int, reached: int) -> None:
        """Write exit.json for a driver that could not: it was killed, or Ray ended it."""
        assert self._child is not None
        pid, killed = self._child.pid, code < 0
        if killed:
            message = f"the driver's process (pid {pid}) was killed by {signal.Signals(-code).name}"
        else:
            message = f"the driver's process (pid {pid}) exited with code {code} without writing exit.json"
            message += ", as Ray ends it when the cluster is lost"
        with suppress(OSError):
            directory.write_exit(
                cause="killed" if killed else "driver_died",
                message=message,
                exit_code=_shell_code(code),
                attempt=directory.last_attempt,
                step=reached,
                first_cause={"role": "driver", "rank": None, "pid": pid, "log": ""},
            )

    def _report(self, ended: Ended, directory: RunDirectory | None, verdict: Verdict, number: int) -> None:
        """Print how an attempt ended and what follows, and write it to the incidents."""
        next_action = f"starting attempt {number + 1} of {self._attempts}" if verdict.retry else "giving up"
        self._say(f"attempt {number} of {self._attempts} ended ({ended.cause}); {verdict.reason}: {next_action}")
        if directory is None:
            return
        action: Action = "next attempt" if verdict.retry else "gave up"
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
    """Return the number of steps done at the end of the last attempt, from the ledger; 0 if it cannot be read."""
    try:
        records = read_ledger(directory.ledger)[0]
    except RlhfError:
        return 0
    own = [r.step for r in records if r.attempt == directory.last_attempt and r.fact in (Fact.attempt, Fact.committed)]
    return max(own, default=0)


def child_command(*arguments: str) -> list[str]:
    """Return the command `rlhf ARGUMENTS` for the Python interpreter of this process."""
    return [sys.executable, "-P", "-m", "orchestrator.cli", *arguments]


def _shell_code(code: int) -> int:
    return code if code >= 0 else 128 - code


def _clean_up(mark: str, pid: int) -> None:
    """End what an attempt left behind on this machine. Its Ray processes end by themselves unless they hang."""
    until = time.monotonic() + CLEAN_UP_S
    while (left := _marked(mark)) and time.monotonic() < until:
        time.sleep(0.1)
    for process in left:
        with suppress(ProcessLookupError, PermissionError):
            os.kill(process, signal.SIGKILL)
    for segment in Path("/dev/shm").glob(f"rlhf-*-{pid}-weights"):  # if its driver could not remove it
        segment.unlink(missing_ok=True)


def _marked(mark: str) -> list[int]:
    """Return the ids of the processes with this mark in their initial environment."""
    variable, marked = f"{MARK}={mark}".encode(), []
    for process in Path("/proc").iterdir():
        if process.name.isdigit():
            with suppress(OSError):  # it has ended, or belongs to another user
                if variable in (process / "environ").read_bytes().split(b"\0"):
                    marked.append(int(process.name))
    return marked
