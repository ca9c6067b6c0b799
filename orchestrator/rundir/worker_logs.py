"""Log files of the workers of a run: `RUN/logs/attempt-N/ROLE-RANK.log`, read in parts."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from orchestrator.errors import BadInput, Problem
from orchestrator.rundir.directory import RunDirectory
from orchestrator.rundir.incidents import worker_log

MOST_BYTES = 2 * 2**20  # of one part


@dataclass(frozen=True, kw_only=True, slots=True)
class LogPart:
    """Part of a worker's log, from byte `offset` to `next_offset`. The rest, if any, begins there."""

    log: str
    attempt: int
    text: str
    offset: int
    next_offset: int
    size: int  # of the file, so far
    is_finished: bool  # True: the attempt has ended, and the file grows no more

    @property
    def is_last(self) -> bool:
        return self.is_finished and self.next_offset >= self.size


def read_part(directory: RunDirectory, role: str, rank: int, *, attempt: int | None = None, offset: int = 0) -> LogPart:
    """Return a part of the log of one worker. `attempt` None: the newest.

    Raises:
        BadInput: there is no such log; the error names those that there are.
    """
    number = attempt or directory.last_attempt
    is_finished = number < directory.last_attempt or directory.holder() is None  # before the size: no end is missed
    path = directory.path / worker_log(number, role, rank)
    if Path(role).name != role or not path.is_file():
        raise _no_log(directory, number, f"{role} rank {rank}")
    with path.open("rb") as file:
        size = file.seek(0, 2)
        file.seek(min(offset, size))
        raw = file.read(MOST_BYTES)
    if offset + len(raw) < size:  # ends with a line, so that no character is cut
        raw = raw[: raw.rfind(b"\n") + 1] or raw
    return LogPart(
        log=str(path),
        attempt=number,
        text=raw.decode("utf-8", "replace"),
        offset=offset,
        next_offset=offset + len(raw),
        size=size,
        is_finished=is_finished,
    )


def workers_with_logs(directory: RunDirectory, attempt: int) -> list[str]:
    """Return the workers that have a log, such as `policy-0`."""
    return sorted(path.stem for path in directory.logs(attempt).glob("*.log"))


def _no_log(directory: RunDirectory, attempt: int, wanted: str) -> BadInput:
    known = workers_with_logs(directory, attempt)
    attempts = sorted(int(p.name.removeprefix("attempt-")) for p in (directory.path / "logs").glob("attempt-*"))
    if attempt not in attempts:
        what = f"there is no attempt {attempt}" if attempt else "no attempt has begun"
        fix = f"give --attempt with one of {', '.join(map(str, attempts))}" if attempts else "wait for its start"
        return BadInput(Problem(what=what, where=str(directory.path), fix=fix))
    shown = ", ".join(known[:16]) + (f" and {len(known) - 16} more" if len(known) > 16 else "")
    fix = f"give --role and --rank of one of {shown}" if known else "wait for its workers to start"
    return BadInput(Problem(what=f"{wanted} has no log in attempt {attempt}", where=str(directory.path), fix=fix))
