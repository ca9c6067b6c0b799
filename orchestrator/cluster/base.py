"""Interface of a cluster: gangs of workers that are called by function reference and answer with handles.

    gang.one(Learner.open_weights, …)     one member          -> Handle
    gang.all(Learner.step, …)             every member, same arguments
    gang.each(Rollout.generate, [(…,), …]) every member, its own arguments

A call returns at once. A handle may be an argument of another call, alone or in a list or tuple. That call then waits
for the result where it runs; the data never pass through the driver.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Concatenate, ParamSpec, Protocol, TypeVar

W_co = TypeVar("W_co", covariant=True)
R = TypeVar("R")
R_co = TypeVar("R_co", covariant=True)
P = ParamSpec("P")


class Handle(Protocol[R_co]):
    """Result of a call that may still be running."""

    def result(self, timeout_s: float | None = None) -> R_co:
        """Wait for the result and return it.

        Raises:
            WorkerFailed: the worker raised or died.
            DeadlineExceeded: the call did not end within `timeout_s`, or its worker made no progress for
                `cluster.progress_timeout_s`.
        """
        ...

    def wait(self) -> None:
        """Wait for the result without fetching it. Raise as `result` does."""
        ...

    def has_ended(self) -> bool:
        """Return whether the call has ended, well or not."""
        ...


@dataclass(frozen=True, kw_only=True, slots=True)
class Resources:
    """Resources of one member of a gang. `gpus` is 0 on a CPU cluster."""

    cpus: float = 1.0
    gpus: float = 0.0
    environment: Mapping[str, str] = field(default_factory=dict)  # never secrets: Ray shows it to everyone


@dataclass(frozen=True, kw_only=True, slots=True)
class GangPlan:
    """Plan of one gang: `start(**arguments[i])` creates the worker of member i, in its own process.

    `restarts` is for workers whose results depend only on the call and on the weights they hold: a member that died or
    hangs is replaced, and its unfinished calls are submitted again. Members that meet are all replaced.
    """

    role: str
    start: Callable[..., Any]
    arguments: Sequence[Mapping[str, Any]]
    resources: Resources
    meet: bool = False  # members form a process group: `start` also gets `address` and `port` of member 0
    restarts: int = 0  # limit for the role in one attempt; 0: the first death ends the attempt
    slow: bool = False  # takes longest to start, so it starts first if not all gangs can start at once
    preload: str | None = None  # kind of fork server that members are forked from, where this machine has one


@dataclass(frozen=True, kw_only=True, slots=True)
class Restart:
    """Restart of a lost member.

    Example: `Restart(role="rollout", rank=1, pid=4711, why="rollout rank 1 failed: its process (pid 4711) died",
    method="generate", number=1, limit=3)`.
    """

    role: str
    rank: int
    pid: int | None  # of the lost process; None: unknown
    why: str  # one line
    method: str  # the call that it was executing
    number: int  # of the role's restarts in this attempt, from 1
    limit: int


class Gang(Protocol[W_co]):
    """The workers of one role."""

    role: str

    def when_restarted(self, restore_state: Callable[[Gang[W_co]], None]) -> None:
        """Register a function that brings restarted members to the state of the others.

        `restore_state` is called with the restarted members, as a gang of their own, before they get any other call.
        """
        ...

    def __len__(self) -> int: ...

    def meeting_point(self) -> tuple[str, int]:
        """Return the address of member 0's machine and a port that is free there."""
        ...

    # Arguments are typed `Any` because a Handle may stand for its result.
    def one(self, method: Callable[Concatenate[W_co, P], R], *args: Any, **kwargs: Any) -> Handle[R]: ...

    def all(self, method: Callable[Concatenate[W_co, P], R], *args: Any, **kwargs: Any) -> Sequence[Handle[R]]: ...

    def each(
        self, method: Callable[Concatenate[W_co, P], R], arguments: Sequence[tuple[Any, ...]]
    ) -> Sequence[Handle[R]]: ...


class Cluster(Protocol):
    """Machines that gangs run on."""

    cuda: bool

    def spawn(self, plans: Sequence[GangPlan], on_wait: Callable[[str], None] | None = None) -> Mapping[str, Gang[Any]]:
        """Place all gangs, waiting for room, and start their members.

        Args:
            on_wait: called about once a second with what the run waits for, and once with an empty text when all
                members have their places, before they are started. It may raise, to end the wait. None: print it.

        Raises:
            PlacementError: the cluster is too small; the error has the shortfall of each role.
        """
        ...

    def release(self) -> None:
        """End all gangs and free their resources, so that the next `spawn` has the whole cluster again."""
        ...

    def accelerators(self) -> list[str]:
        """Return the GPU types of the cluster by Ray's names, sorted. Empty if it has none or does not know them."""
        ...

    def wait_first(self, handles: Sequence[Handle[Any]]) -> None:
        """Wait until one of the calls has succeeded. Raise as `Handle.wait` does if one fails."""
        ...

    def when_idle(self, work: Callable[[], object]) -> None:
        """Call `work` every few seconds while the driver waits for results. It must return soon."""
        ...

    def waited_s(self) -> float:
        """Return the seconds that the driver has spent waiting for results so far."""
        ...

    def restarts(self) -> Mapping[str, int]:
        """Return the number of restarts of each role so far. Roles without restarts are left out."""
        ...

    def shutdown(self) -> None: ...


def wait(handles: Sequence[Handle[R]]) -> list[R]:
    """Return the results of a fan-out."""
    return [handle.result() for handle in handles]
