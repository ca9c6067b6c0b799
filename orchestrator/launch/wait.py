"""Waiting for the end of a job: its states and its log as they come, and its exit code."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator

from orchestrator.errors import BadInput, Problem, RlhfError
from orchestrator.launch.base import Job, JobState, Launcher

POLL_S = 1.0
PAUSES_S = (1.0, 2.0, 5.0, 10.0, 30.0)  # after a failure of the connection; the last one is repeated
PATIENCE_S = 3600.0  # with a connection that stays broken
LOST = 3  # exit code of a job whose engine does not know how it ended


class _Printer:
    """Printer of a log that is read again from its beginning after a connection broke. It prints every line once."""

    def __init__(self, say: Callable[[str], None]) -> None:
        self._say = say
        self._log, self._line = "", ""  # what has been read, and its last line, which is not printed yet

    def print(self, pieces: Iterator[str]) -> None:
        """Print what is new in a log. A log that does not begin like the one before is a new one."""
        before, self._log = self._log, ""
        for piece in pieces:
            self._log += piece
            if before and len(self._log) < len(before):
                continue
            if before:
                piece = self._log.removeprefix(before)
                before = ""
            self._take(piece)
        if before.startswith(self._log):  # it broke again before anything new came
            self._log = before
        elif before:
            self._take(self._log)

    def _take(self, text: str) -> None:
        *lines, self._line = (self._line + text).split("\n")
        for line in lines:
            self._say(line)

    def close(self) -> None:
        if self._line:
            self._say(self._line)


def wait_for_job(
    launcher: Launcher,
    id: str,
    say: Callable[[str], None],
    *,
    where: str = "",
    only_log: bool = False,
    report: Callable[[str], None] | None = None,
    sleep: Callable[[float], None] = time.sleep,
    clock: Callable[[], float] = time.monotonic,
) -> int:
    """Print the states and the log of a job until it ends, and return the exit code of its run.

    Ctrl-C only ends the waiting, with exit code 130: the job goes on. A connection that breaks is tried again for
    PATIENCE_S.

    Args:
        where: options that name the target, such as `--on h100`, for the commands that are shown.
        only_log: print no states, and follow the log from the start, also that of a job that waits.
        report: prints what happens to the connection; None: `say`.

    Raises:
        BadInput: the engine knows no such job.
        ClusterError: the connection stayed broken, or the engine has forgotten the job.
    """
    printer, told, broken_since, failures = _Printer(say), "", 0.0, 0
    report = report or say
    try:
        while True:
            try:
                job = _find(launcher, id)
                if failures:
                    report("connected again")
                    failures = 0
                if job.state.is_finished:
                    printer.print(launcher.logs(job.id))
                    break
                told = told if only_log else _tell(job, told, say)
                if only_log or job.state is JobState.running:
                    printer.print(launcher.logs(job.id, follow=True))
                sleep(POLL_S)
            except BadInput:
                raise
            except RlhfError as error:
                broken_since = clock() if not failures else broken_since
                if clock() - broken_since > PATIENCE_S:
                    raise
                if not failures:
                    report(f"{error.problems[0].what}: {error.problems[0].why}; trying again, the job goes on")
                sleep(PAUSES_S[min(failures, len(PAUSES_S) - 1)])
                failures += 1
    except KeyboardInterrupt:
        at = f"{where.strip()} {id}".strip()
        report(f"the job goes on; look at it again with: rlhf status {at}, rlhf logs -f {at}")
        return 130
    printer.close()
    if not only_log:
        _tell(job, told, say)
    return exit_code_of(job)


def exit_code_of(job: Job) -> int:
    """Return the exit code of a job that has ended, as that of its run."""
    if job.exit_code is not None:
        return job.exit_code
    return {JobState.succeeded: 0, JobState.stopped: 143}.get(job.state, LOST)


def _find(launcher: Launcher, id: str) -> Job:
    job = launcher.find(id)
    if job is None:
        why = "its cluster was started anew, or the job was deleted"
        raise BadInput(Problem(what=f"there is no job {id}", why=why, fix="submit it again: its run goes on"))
    return job


def _tell(job: Job, told: str, say: Callable[[str], None]) -> str:
    """Print the state if it is news, and return it."""
    text = f"{job.id} {job.state}" + (f": {job.reason}" if job.reason else "")
    if text != told:
        say(text)
    return text
