"""Errors that a person meets: the tree, its exit codes, and how each is said.

    RlhfError                 1   anything without a better word
    ├── BadInput              2   recipe, data, reward function, command line: many problems at once
    │   └── ResumeError       2   there is nothing that could be resumed, or not with this config
    ├── ClusterError          3   no cluster, wrong address or token, versions that do not go together
    │   ├── PlacementError    3   the cluster is smaller than what the roles ask for
    │   └── ClusterLost       3   the cluster was there and is gone
    ├── WorkerFailed          4   an actor raised or died; carries its own traceback
    │   ├── DeadlineExceeded  4   an actor did not answer in time
    │   ├── NoHeartbeat       4   an actor's process does not run any more, though it is there
    │   ├── HostOutOfMemory   4   the machine had no memory left for an actor
    │   ├── StoreFull         4   Ray's object store, and the disk it spills to, have no room for an answer
    │   ├── VersionMismatch   4   an actor holds other weights than it was asked for
    │   ├── NotFinite         4   a loss or a gradient is NaN or infinite
    │   └── FleetExhausted    4   the actors of a role died more often than they may be started again
    ├── HubUnreachable        1   the model hub does not answer, and there is no copy of the model here
    ├── DiskFailed            1   the disk is full, read-only or broken
    ├── LimitReached          1   the driver may open no more files, or start no more processes
    ├── JudgeFailed           1   the endpoint of a judge refuses, or gives no verdicts
    ├── Alarmed               5   an alarm of the recipe ended the run, after a step and with a checkpoint
    ├── Superseded            6   another driver has taken the run over: this one writes nothing any more
    └── Interrupted         130   Ctrl-C; 143 when it was SIGTERM

Exit code 0 is "done". Every error is one or more `Problem`s: what, where, why, and what to do about it.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import ClassVar

SECRET = re.compile(
    r"hf_[A-Za-z0-9]{16,}|sk-[A-Za-z0-9_-]{16,}|gh[pousr]_[A-Za-z0-9]{20,}|github_pat_\w{20,}|AKIA[A-Z0-9]{16}"
    r"|xox[abprs]-[A-Za-z0-9-]{10,}|wandb_v1_\w{16,}|-----BEGIN [A-Z ]*PRIVATE KEY-----"
    r"|(?<=://)[^/\s:@]+:[^/\s@]+(?=@)"
)
"""Things that are secret wherever they stand: keys of well-known services, and `user:password` in a URL."""


SECRET_VARIABLE = re.compile(r"(^|_)(TOKEN|API_?KEY|SECRET|SECRET_KEY|ACCESS_KEY|PASSWORD|PASSWD|CREDENTIALS)$")
MIN_SECRET_LENGTH = 8  # shorter values are words that stand in any text


def redact(text: str) -> str:
    """Without what looks like a secret, and without the values of variables that are named like one."""
    for name, value in os.environ.items():
        if len(value) >= MIN_SECRET_LENGTH and SECRET_VARIABLE.search(name.upper()):
            text = text.replace(value, "[redacted]")
    return SECRET.sub("[redacted]", text)


@dataclass(frozen=True, kw_only=True, slots=True)
class Problem:
    """One thing that is wrong.

    Example: `Problem(what="algorithm.beta = -1", where="grpo.yaml:4", why="…", fix="give a number >= 0")`.
    An empty `where`, `why` or `fix` is left out.
    """

    what: str
    where: str = ""
    why: str = ""
    fix: str = ""

    def __str__(self) -> str:
        lines = [f"{self.where}: {self.what}" if self.where else self.what]
        lines += [f"  {label}: {text}" for label, text in (("why", self.why), ("fix", self.fix)) if text]
        return redact("\n".join(lines))


class Problems(list[Problem]):
    """A list that collects what is wrong, so that all of it is said at once."""

    def add(self, what: str, *, where: str = "", why: str = "", fix: str = "") -> None:
        self.append(Problem(what=what, where=where, why=why, fix=fix))

    def raise_if_any(self) -> None:
        if self:
            raise BadInput(self)


class RlhfError(Exception):
    """Base of all of ours. `cause` is the word that `exit.json` records."""

    exit_code: ClassVar[int] = 1
    cause: str = "error"

    def __init__(self, problems: Problem | Iterable[Problem]) -> None:
        self.problems: tuple[Problem, ...] = (problems,) if isinstance(problems, Problem) else tuple(problems)
        super().__init__(*self.problems)

    def __str__(self) -> str:
        return "\n\n".join(str(problem) for problem in self.problems)


class BadInput(RlhfError):
    """What was given cannot be run. Raised before anything is started."""

    exit_code = 2
    cause = "bad_input"


class ResumeError(BadInput):
    """There is no run to go on with, or it cannot go on as asked."""

    cause = "cannot_resume"


class ClusterError(RlhfError):
    """The cluster cannot be reached or does not suit; says which step of connecting failed."""

    exit_code = 3
    cause = "cluster"


@dataclass(frozen=True, kw_only=True, slots=True)
class Shortfall:
    """What one role lacks. Example: `Shortfall(role="policy", resource="GPU", asked=8, available=4)`."""

    role: str
    resource: str
    asked: float
    available: float


class PlacementError(ClusterError):
    """The roles ask for more than the cluster has."""

    cause = "placement"

    def __init__(self, shortfalls: Sequence[Shortfall], *, where: str = "", fix: str = "") -> None:
        self.shortfalls = tuple(shortfalls)
        super().__init__(
            Problem(
                what=f"{s.role} asks for {s.asked:g} {s.resource}, {s.available:g} left for it",
                where=where,
                why="the roles together must fit the cluster, or the run would wait for ever",
                fix=fix or "ask for fewer workers, or use a larger cluster (cluster.address)",
            )
            for s in shortfalls
        )


class ClusterLost(ClusterError):
    """The cluster was there and does not answer any more."""

    cause = "cluster_lost"

    def __init__(self, seconds: float, *, address: str | None) -> None:
        what = f"the Ray cluster{f' {address}' if address else ''} has not answered for {seconds:.0f} s"
        why = "its head process died, its machine is gone, or the network to it is cut"
        super().__init__(Problem(what=what, why=why, fix="bring the cluster back and resume the run"))


class WorkerFailed(RlhfError):
    """An actor raised or died. The message is the first cause; `traceback` is the worker's own. `pid` is None where it
    is not known."""

    exit_code = 4
    cause = "worker_failed"
    pid: int | None = None

    def __init__(self, role: str, rank: int, traceback: str, *, fix: str = "", pid: int | None = None) -> None:
        self.role, self.rank, self.traceback, self.pid = role, rank, redact(traceback.rstrip()), pid
        last_line = self.traceback.rsplit("\n", 1)[-1].strip() or "died without a word"
        why = "its own traceback stands below" if "\n" in self.traceback else ""
        super().__init__(Problem(what=f"{role} rank {rank} failed: {last_line}", why=why, fix=fix))

    def __str__(self) -> str:
        if "\n" not in self.traceback:
            return super().__str__()
        return super().__str__() + "\n\n" + "\n".join("  | " + line for line in self.traceback.split("\n"))


class DeadlineExceeded(WorkerFailed):
    """An actor did not answer within the time it was given."""

    cause = "deadline"

    def __init__(
        self, role: str, method: str, seconds: float, *, rank: int | None = None, pid: int | None = None
    ) -> None:
        self.role, self.method, self.seconds, self.traceback, self.pid = role, method, seconds, "", pid
        self.rank = -1 if rank is None else rank  # -1: any of the gang
        who = role if rank is None else f"{role} rank {rank}"
        RlhfError.__init__(
            self,
            Problem(
                what=f"{who} did not answer `{method}` within {seconds:g} s",
                why="it hangs, or the work is larger than the deadline allows",
                fix="see logs/latest of the run; if the work is that large, raise cluster.call_timeout_s",
            ),
        )


class NoHeartbeat(WorkerFailed):
    """An actor's process is there, but does not run: stopped, frozen, or stuck outside Python."""

    cause = "no_heartbeat"

    def __init__(self, role: str, method: str, seconds: float, *, rank: int, pid: int | None = None) -> None:
        self.role, self.rank, self.method, self.seconds, self.traceback, self.pid = role, rank, method, seconds, "", pid
        process = f" (pid {pid})" if pid else ""
        RlhfError.__init__(
            self,
            Problem(
                what=f"{role} rank {rank}{process} gave no sign of life for {seconds:g} s, during `{method}`",
                why="its process is stopped or frozen, its machine is gone, or a library holds the interpreter",
                fix="see logs/latest of the run; if a library does that for so long, raise cluster.heartbeat_timeout_s",
            ),
        )


class HostOutOfMemory(WorkerFailed):
    """The machine had no memory left for an actor."""

    cause = "host_oom"

    def __init__(self, role: str, rank: int, traceback: str, *, pid: int | None = None) -> None:
        fix = "give the machine more memory, or ask for less: shorter completions, a smaller batch, fewer workers on it"
        super().__init__(role, rank, traceback, fix=fix, pid=pid)


class StoreFull(WorkerFailed):
    """Ray's object store is full, and so is the disk that it spills to: an answer could not be kept."""

    cause = "store_full"

    def __init__(self, role: str, rank: int, method: str, told: str) -> None:
        self.role, self.rank, self.method, self.traceback, self.pid = role, rank, method, told, None
        RlhfError.__init__(
            self,
            Problem(
                what=f"Ray's object store has no room for the answer of {role} rank {rank} to `{method}`",
                why="the store of that machine is full, and so is the disk that it spills to",
                fix="make room in Ray's temporary directory there, or give the store more memory "
                "(cluster.object_store_memory_mib, ray start --object-store-memory)",
            ),
        )


class VersionMismatch(WorkerFailed):
    """An actor holds the weights of another version than the one it was asked for, so that it did not answer."""

    cause = "version_mismatch"


class NotFinite(WorkerFailed):
    """A loss or a gradient is NaN or infinite. The attempt ends before anything of it is written or published."""

    cause = "not_finite"

    def __init__(self, role: str, rank: int, traceback: str, *, pid: int | None = None) -> None:
        fix = (
            "look at the prompts it names, and at grad_norm in metrics.jsonl; every checkpoint is from before it. "
            "Where it comes again, start under another name with a lower algorithm.learning_rate or max_grad_norm"
        )
        super().__init__(role, rank, traceback, fix=fix, pid=pid)


class FleetExhausted(WorkerFailed):
    """The actors of a role died more often than they may be started again in place. `last` is the last death."""

    cause = "fleet_exhausted"

    def __init__(self, last: WorkerFailed, method: str, *, restarts: int, of_this_call: int) -> None:
        self.role, self.rank, self.traceback, self.pid = last.role, last.rank, last.traceback, last.pid
        self.method, self.restarts = method, restarts
        times = "once" if restarts == 1 else f"{restarts} times"
        why = last.problems[0].what
        if of_this_call > 1:
            why += f"; the same call of `{method}` ended it {of_this_call} times: what it was given may be the cause"
        RlhfError.__init__(
            self,
            Problem(
                what=f"{self.role} was started again {times} and rank {self.rank} died again, during `{method}`",
                why=why,
                fix="see logs/latest of the run; cluster.restarts_per_role says how often a role may be started again",
            ),
        )


class HubUnreachable(RlhfError):
    """The model hub does not answer, and the model is in no cache of this machine."""

    cause = "hub_unreachable"

    def __init__(self, name: str, where: str, told: str) -> None:
        super().__init__(
            Problem(
                what=f"the model hub does not answer, and there is no copy of {name} on this machine",
                where=where,
                why=told,
                fix=f"try again when it does; or bring a copy here (hf download {name}), or give a directory",
            )
        )


class DiskFailed(RlhfError):
    """State could not be written. What was written before is as it was, and a run can go on from it."""

    def __init__(self, why: str, *, place: str, full: bool, free_bytes: int, resume: str = "") -> None:
        """`why`: what the system said; `place`: the file it said it of, or the directory it was in."""
        self.cause = "disk_full" if full else "disk_failed"
        fix = "make room" if full else "make it writable"
        super().__init__(
            Problem(
                what=f"the disk is full: {free_bytes:,} bytes are free" if full else "the disk refuses what is written",
                where=place,
                why=f"{why}; nothing that was written before is lost",
                fix=f"{fix}, then go on with: {resume}" if resume else fix,
            )
        )


class LimitReached(RlhfError):
    """The system refuses the driver another file or process. `what`: "open files" or "processes"."""

    cause = "limit_reached"

    def __init__(self, what: str, limit: int, *, told: str, fix: str) -> None:
        reached = f"the driver has reached its limit of {what}"
        super().__init__(Problem(what=f"{reached}: {limit}" if limit >= 0 else reached, why=told, fix=fix))


class JudgeFailed(RlhfError):
    """The endpoint that compares completions cannot be used, or too many pairs got no verdict."""

    cause = "judge"


class Alarmed(RlhfError):
    """An alarm whose `action` is not to warn. `cause`: alarm_pause, alarm_stop or alarm_roll_back."""

    exit_code = 5

    def __init__(self, name: str, action: str, problem: Problem) -> None:
        self.name, self.action = name, action
        self.cause = f"alarm_{action}"
        super().__init__(problem)


class Superseded(RlhfError):
    """Another driver holds the run directory now. Nothing is written there by the one that raises this, not even how it
    ended."""

    exit_code = 6
    cause = "superseded"

    def __init__(self, directory: str, holder: str) -> None:
        super().__init__(
            Problem(
                what="another driver has taken this run over",
                where=directory,
                why=f"{holder} is at it: this one was stopped or cut off for a while, and its lock was let go",
                fix="leave the run to that driver; nothing was written by this one since",
            )
        )


class Interrupted(RlhfError):
    """Someone asked the run to end: Ctrl-C, or SIGTERM from a scheduler."""

    def __init__(self, signal: str, *, resume: str = "") -> None:
        self.signal = signal
        self.cause = "preempted" if signal == "SIGTERM" else "user"
        what = f"stopped by {'Ctrl-C' if signal == 'SIGINT' else signal}"
        super().__init__(Problem(what=what, fix=f"go on with: {resume}" if resume else ""))

    @property
    def exit_code(self) -> int:  # type: ignore[override]
        return 143 if self.signal == "SIGTERM" else 130
