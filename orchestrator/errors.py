"""Errors that a person meets: the tree, its exit codes, and how each is said.

    RlhfError                 1   anything without a better word
    ├── BadInput              2   recipe, data, reward function, command line: many problems at once
    │   └── ResumeError       2   there is nothing that could be resumed, or not with this config
    ├── ClusterError          3   no cluster, wrong address or token, versions that do not go together
    │   └── PlacementError    3   the cluster is smaller than what the roles ask for
    ├── WorkerFailed          4   an actor raised or died; carries its own traceback
    │   └── DeadlineExceeded  4   an actor did not answer in time
    ├── Alarmed               5   an alarm of the recipe ended the run, after a step and with a checkpoint
    └── Interrupted         130   Ctrl-C; 143 when it was SIGTERM

Exit code 0 is "done". Every error is one or more `Problem`s: what, where, why, and what to do about it.
"""

from __future__ import annotations

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


def redact(text: str) -> str:
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


class WorkerFailed(RlhfError):
    """An actor raised or died. The message is the first cause; `traceback` is the worker's own."""

    exit_code = 4
    cause = "worker_failed"

    def __init__(self, role: str, rank: int, traceback: str, *, fix: str = "") -> None:
        self.role, self.rank, self.traceback = role, rank, redact(traceback.rstrip())
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

    def __init__(self, role: str, method: str, seconds: float, *, rank: int | None = None) -> None:
        self.role, self.method, self.seconds, self.traceback = role, method, seconds, ""
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


class Alarmed(RlhfError):
    """An alarm whose `action` is not to warn. `cause`: alarm_pause, alarm_stop or alarm_roll_back."""

    exit_code = 5

    def __init__(self, name: str, action: str, problem: Problem) -> None:
        self.name, self.action = name, action
        self.cause = f"alarm_{action}"
        super().__init__(problem)


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
