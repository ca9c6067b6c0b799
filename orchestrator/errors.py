"""Errors for users: their tree, exit codes and texts.

    RlhfError                 1   any other error
    ├── BadInput              2   recipe, data, reward function, command line: many problems at once
    │   └── ResumeError       2   there is no run to resume, or it cannot be resumed with this config
    ├── ClusterError          3   no cluster, wrong address or token, incompatible versions
    │   ├── PlacementError    3   the cluster is smaller than what the roles ask for
    │   └── ClusterLost       3   the cluster does not answer any more
    ├── WorkerFailed          4   an actor raised or died; carries the worker's traceback
    │   ├── DeadlineExceeded  4   a call did not end in time
    │   ├── NoHeartbeat       4   an actor's process exists but does not run
    │   ├── HostOutOfMemory   4   the machine had no memory left for an actor
    │   ├── StoreFull         4   Ray's object store, and the disk it spills to, have no room for a result
    │   ├── VersionMismatch   4   an actor holds other weights than it was asked for
    │   ├── NotFinite         4   a loss or a gradient is NaN or infinite
    │   └── FleetExhausted    4   a role has used up its restarts
    ├── HubUnreachable        1   the model hub does not answer, and there is no local copy of the model
    ├── DiskFailed            1   the disk is full, read-only or broken
    ├── FilesLost             1   files that a worker wrote are not where the driver looks for them
    ├── LimitReached          1   the driver may open no more files, or start no more processes
    ├── JudgeFailed           1   the endpoint of a judge refuses, or gives no verdicts
    ├── Alarmed               5   an alarm of the recipe ended the run, after a step and with a checkpoint
    ├── Superseded            6   another driver has taken the run over; this one writes nothing more
    └── Interrupted         130   Ctrl-C; 143 for SIGTERM, and for a stop that another process asked for

Exit code 0 means success. Every error is one or more `Problem`s: what, where, why, and how to fix it.
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
"""Texts that are always secret: keys of well-known services, and `user:password` in a URL."""


SECRET_VARIABLE = re.compile(r"(^|_)(TOKEN|API_?KEY|SECRET|SECRET_KEY|ACCESS_KEY|PASSWORD|PASSWD|CREDENTIALS)$")
MIN_SECRET_LENGTH = 8  # shorter values may be ordinary words


def redact(text: str) -> str:
    """Remove from a text what looks like a secret, and the values of environment variables named like one."""
    for name, value in os.environ.items():
        if len(value) >= MIN_SECRET_LENGTH and SECRET_VARIABLE.search(name.upper()):
            text = text.replace(value, "[redacted]")
    return SECRET.sub("[redacted]", text)


@dataclass(frozen=True, kw_only=True, slots=True)
class Problem:
    """Description of one thing that is wrong. An empty `where`, `why` or `fix` is left out of the text.

    Example: `Problem(what="algorithm.beta = -1", where="grpo.yaml:4", why="…", fix="give a number >= 0")`.
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
    """List of problems, collected so that all are reported at once."""

    def add(self, what: str, *, where: str = "", why: str = "", fix: str = "") -> None:
        self.append(Problem(what=what, where=where, why=why, fix=fix))

    def raise_if_any(self) -> None:
        if self:
            raise BadInput(self)


class RlhfError(Exception):
    """Base class of all errors for users. `exit.json` records the `cause`."""

    exit_code: ClassVar[int] = 1
    cause: str = "error"

    def __init__(self, problems: Problem | Iterable[Problem]) -> None:
        self.problems: tuple[Problem, ...] = (problems,) if isinstance(problems, Problem) else tuple(problems)
        super().__init__(*self.problems)

    def __str__(self) -> str:
        return "\n\n".join(str(problem) for problem in self.problems)


class BadInput(RlhfError):
    """Invalid input. Raised before anything is started."""

    exit_code = 2
    cause = "bad_input"


class ResumeError(BadInput):
    """No run to resume, or a run that cannot be resumed as requested."""

    cause = "cannot_resume"


class ClusterError(RlhfError):
    """The cluster cannot be reached or cannot be used. Names the step of connecting that failed."""

    exit_code = 3
    cause = "cluster"


@dataclass(frozen=True, kw_only=True, slots=True)
class Shortfall:
    """Resources that one role lacks. Example: `Shortfall(role="policy", resource="GPU", asked=8, available=4)`."""

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
                why="all roles together must fit the cluster, or the run would wait for ever",
                fix=fix or "ask for fewer workers, or use a larger cluster (cluster.address)",
            )
            for s in shortfalls
        )


class ClusterLost(ClusterError):
    """The cluster does not answer any more."""

    cause = "cluster_lost"

    def __init__(self, seconds: float, *, address: str | None) -> None:
        what = f"the Ray cluster{f' {address}' if address else ''} has not answered for {seconds:.0f} s"
        why = "its head process died, its machine is lost, or the network to it is cut"
        super().__init__(Problem(what=what, why=why, fix="bring the cluster back and resume the run"))


class WorkerFailed(RlhfError):
    """An actor raised or died. The message names the first cause; `traceback` is the worker's own."""

    exit_code = 4
    cause = "worker_failed"
    pid: int | None = None  # None: unknown

    def __init__(self, role: str, rank: int, traceback: str, *, fix: str = "", pid: int | None = None) -> None:
        self.role, self.rank, self.traceback, self.pid = role, rank, redact(traceback.rstrip()), pid
        last_line = self.traceback.rsplit("\n", 1)[-1].strip() or "died without a message"
        why = "its traceback is below" if "\n" in self.traceback else ""
        super().__init__(Problem(what=f"{role} rank {rank} failed: {last_line}", why=why, fix=fix))

    def __str__(self) -> str:
        if "\n" not in self.traceback:
            return super().__str__()
        return super().__str__() + "\n\n" + "\n".join("  | " + line for line in self.traceback.split("\n"))


class DeadlineExceeded(WorkerFailed):
    """A worker made no progress with a call, or a worker did not start in time."""

    cause = "deadline"

    def __init__(
        self, role: str, method: str, seconds: float, *, rank: int | None = None, pid: int | None = None
    ) -> None:
        self.role, self.method, self.seconds, self.traceback, self.pid = role, method, seconds, "", pid
        self.rank = -1 if rank is None else rank  # -1: any of the gang
        worker = role if rank is None else f"{role} rank {rank}"
        setting = "start_timeout_s" if method in ("start", "meeting_point") else "progress_timeout_s"
        RlhfError.__init__(
            self,
            Problem(
                what=f"{worker} made no progress with `{method}` for {seconds:g} s",
                why="it hangs, or a single piece of its work takes longer than that",
                fix=f"see logs/latest of the run; if the work needs more time, raise cluster.{setting}",
            ),
        )


class NoHeartbeat(WorkerFailed):
    """An actor's process exists but does not run: it is stopped, frozen, or stuck outside Python."""

    cause = "no_heartbeat"

    def __init__(self, role: str, method: str, seconds: float, *, rank: int, pid: int | None = None) -> None:
        self.role, self.rank, self.method, self.seconds, self.traceback, self.pid = role, rank, method, seconds, "", pid
        process = f" (pid {pid})" if pid else ""
        RlhfError.__init__(
            self,
            Problem(
                what=f"{role} rank {rank}{process} sent no heartbeat for {seconds:g} s, during `{method}`",
                why="its process is stopped or frozen, its machine is lost, or a library blocks the interpreter",
                fix="see logs/latest of the run; if a library blocks it that long, raise cluster.heartbeat_timeout_s",
            ),
        )


class HostOutOfMemory(WorkerFailed):
    """The machine had no memory left for an actor."""

    cause = "host_oom"

    def __init__(self, role: str, rank: int, traceback: str, *, pid: int | None = None) -> None:
        fix = "give the machine more memory, or ask for less: shorter completions, a smaller batch, fewer workers on it"
        super().__init__(role, rank, traceback, fix=fix, pid=pid)


class StoreFull(WorkerFailed):
    """Ray's object store and the disk that it spills to are full: a result could not be stored."""

    cause = "store_full"

    def __init__(self, role: str, rank: int, method: str, reason: str) -> None:
        self.role, self.rank, self.method, self.traceback, self.pid = role, rank, method, reason, None
        RlhfError.__init__(
            self,
            Problem(
                what=f"Ray's object store has no room for the result of `{method}` from {role} rank {rank}",
                why="the store of that machine and the disk that it spills to are full",
                fix="free space in Ray's temporary directory there, or give the store more memory "
                "(cluster.object_store_memory_mib, ray start --object-store-memory)",
            ),
        )


class VersionMismatch(WorkerFailed):
    """An actor refused a call because it holds another version of the weights than the call asks for."""

    cause = "version_mismatch"


class NotFinite(WorkerFailed):
    """A loss or a gradient is NaN or infinite. The attempt ends before the update is saved or published."""

    cause = "not_finite"

    def __init__(self, role: str, rank: int, traceback: str, *, pid: int | None = None) -> None:
        fix = (
            "look at the prompts it names, and at grad_norm in metrics.jsonl; all checkpoints are from before it. "
            "If it happens again, start a new run with a lower algorithm.learning_rate or max_grad_norm"
        )
        super().__init__(role, rank, traceback, fix=fix, pid=pid)


class FleetExhausted(WorkerFailed):
    """A role has used up its restarts. `last` is the last failure."""

    cause = "fleet_exhausted"

    def __init__(self, last: WorkerFailed, method: str, *, restarts: int, of_this_call: int) -> None:
        self.role, self.rank, self.traceback, self.pid = last.role, last.rank, last.traceback, last.pid
        self.method, self.restarts = method, restarts
        times = "once" if restarts == 1 else f"{restarts} times"
        why = last.problems[0].what
        if of_this_call > 1:
            why += f"; the same call of `{method}` failed {of_this_call} times: its input may be the cause"
        RlhfError.__init__(
            self,
            Problem(
                what=f"{self.role} was restarted {times} and rank {self.rank} failed again, during `{method}`",
                why=why,
                fix="see logs/latest of the run; cluster.restarts_per_role limits the restarts of a role",
            ),
        )


class HubUnreachable(RlhfError):
    """The model hub does not answer, and the model is not cached on this machine."""

    cause = "hub_unreachable"

    def __init__(self, name: str, where: str, reason: str) -> None:
        super().__init__(
            Problem(
                what=f"the model hub does not answer, and there is no copy of {name} on this machine",
                where=where,
                why=reason,
                fix=f"try again later, download a copy (hf download {name}), or give a model directory",
            )
        )


class DiskFailed(RlhfError):
    """State could not be written. Earlier state is intact, so the run can be resumed."""

    def __init__(self, why: str, *, place: str, full: bool, free_bytes: int, resume: str = "") -> None:
        """Describe the failure. `why`: the system's error; `place`: the file, or the directory if that is unknown."""
        self.cause = "disk_full" if full else "disk_failed"
        fix = "free space" if full else "make it writable"
        super().__init__(
            Problem(
                what=f"the disk is full: {free_bytes:,} bytes are free" if full else "cannot write to the disk",
                where=place,
                why=f"{why}; nothing that was written before is lost",
                fix=f"{fix}, then resume with: {resume}" if resume else fix,
            )
        )


class FilesLost(RlhfError):
    """Files that a worker wrote are not where the driver looks for them, or not those that it wrote."""

    cause = "files_lost"


class StorageFailed(RlhfError):
    """Object storage does not answer. What is stored is intact, so the run can be resumed."""

    cause = "storage_failed"

    def __init__(self, url: str, why: str) -> None:
        fix = "wait until it answers again, or mend the network, and resume the run"
        super().__init__(Problem(what="object storage does not answer", where=url, why=why, fix=fix))


class LimitReached(RlhfError):
    """The driver has reached a limit of the system. `what`: "open files" or "processes"."""

    cause = "limit_reached"

    def __init__(self, what: str, limit: int, *, reason: str, fix: str) -> None:
        reached = f"the driver has reached its limit of {what}"
        super().__init__(Problem(what=f"{reached}: {limit}" if limit >= 0 else reached, why=reason, fix=fix))


class JudgeFailed(RlhfError):
    """The endpoint that compares completions cannot be used, or too many pairs got no verdict."""

    cause = "judge"


class Alarmed(RlhfError):
    """An alarm with another action than `warn` fired. `cause`: alarm_pause, alarm_stop or alarm_roll_back."""

    exit_code = 5

    def __init__(self, name: str, action: str, problem: Problem) -> None:
        self.name, self.action = name, action
        self.cause = f"alarm_{action}"
        super().__init__(problem)


class Superseded(RlhfError):
    """Another driver holds the run directory now. This one writes nothing there any more, not even exit.json."""

    exit_code = 6
    cause = "superseded"

    def __init__(self, directory: str, holder: str) -> None:
        super().__init__(
            Problem(
                what="another driver has taken this run over",
                where=directory,
                why=f"{holder} holds the run's lock: this one was suspended or cut off, and lost it",
                fix="leave the run to that driver; this one has written nothing since",
            )
        )


class Interrupted(RlhfError):
    """The run was asked to stop: by Ctrl-C, by SIGTERM from a scheduler, or by the file `stop` in its directory."""

    def __init__(self, signal: str, *, by: str = "", cause: str = "", resume: str = "") -> None:
        """Describe the request. `signal`: name of the signal; empty: `by` asked, by the file."""
        self.signal, self.by = signal, by
        self.cause = cause or ("preempted" if signal == "SIGTERM" else "user")
        what = f"stopped by {by or ('Ctrl-C' if signal == 'SIGINT' else signal)}"
        super().__init__(Problem(what=what, fix=f"resume with: {resume}" if resume else ""))

    @property
    def exit_code(self) -> int:  # type: ignore[override]
        return 130 if self.signal == "SIGINT" else 143
