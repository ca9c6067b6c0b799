"""What the loop asks of a cluster: gangs of workers, called by function reference, answering by handle.

    gang.one(Learner.open_weights, …)     one member          -> Handle
    gang.all(Learner.step, …)             every member, same arguments
    gang.each(Rollout.generate, [(…,), …]) every member, its own arguments

A call returns at once. A handle may be an argument of a further call, alone or in a list or tuple: that call then
waits for it where it runs, and the data never pass through the driver.
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
    """The answer of a call, some time."""

    def result(self, timeout_s: float | None = None) -> R_co:
        """Wait for it. Raises the worker's failure as WorkerFailed, and DeadlineExceeded after `timeout_s` (None: the
        cluster's own deadline)."""
        ...

    def wait(self) -> None:
        """Return when the answer is there, without fetching it. Raises as `result` does for a call that never ends."""
        ...


@dataclass(frozen=True, kw_only=True, slots=True)
class Resources:
    """What one member of a gang occupies. `gpus` 0 on a CPU cluster."""

    cpus: float = 1.0
    gpus: float = 0.0
    environment: Mapping[str, str] = field(default_factory=dict)  # never secrets: Ray shows it to everyone


@dataclass(frozen=True, kw_only=True, slots=True)
class GangPlan:
    """A gang to be started: `start(**arguments[i])` makes member i, in its own process. A gang whose members `meet` in
    a process group also gets `address` and `port`, where member 0 lives.

    `restarts`: how often members that died or hang are started again in their place, and the calls they owed are made
    again. It is for workers whose answers depend on the call and on the weights they hold alone; 0: a death ends the
    attempt. Members that meet are all started again.

    `slow`: whether starting takes longest, so that it should begin first where not all can start at once."""

    role: str
    start: Callable[..., Any]
    arguments: Sequence[Mapping[str, Any]]
    resources: Resources
    meet: bool = False
    restarts: int = 0
    slow: bool = False


@dataclass(frozen=True, kw_only=True, slots=True)
class Restart:
    """A member that was lost and is started again in its place.

    Example: `Restart(role="rollout", rank=1, pid=4711, why="rollout rank 1 failed: its process (pid 4711) died",
    method="generate", number=1, limit=3)`.
    """

    role: str
    rank: int
    pid: int | None  # of the process that was lost; None: not known
    why: str  # one line
    method: str  # the call that it owed
    number: int  # of this role in this attempt, from 1
    limit: int


class Gang(Protocol[W_co]):
    """The workers of one role."""

    role: str

    def when_restarted(self, restore_state: Callable[[Gang[W_co]], None]) -> None:
        """Register what brings restarted members to the state of the others.

        `restore_state` is called with the restarted members, as a gang of their own, before they get any other call.
        """
        ...

    def __len__(self) -> int: ...

    def meeting_point(self) -> tuple[str, int]:
        """Address of member 0's machine and a port that is free there."""
        ...

    # Arguments are typed `Any` where a Handle may stand for the value it will become.
    def one(self, method: Callable[Concatenate[W_co, P], R], *args: Any, **kwargs: Any) -> Handle[R]: ...

    def all(self, method: Callable[Concatenate[W_co, P], R], *args: Any, **kwargs: Any) -> Sequence[Handle[R]]: ...

    def each(
        self, method: Callable[Concatenate[W_co, P], R], arguments: Sequence[tuple[Any, ...]]
    ) -> Sequence[Handle[R]]: ...


class Cluster(Protocol):
    """Where gangs live."""

    cuda: bool

    def spawn(self, plans: Sequence[GangPlan]) -> Mapping[str, Gang[Any]]:
        """Place all gangs and start their members; raises PlacementError with the shortfall per role."""
        ...

    def release(self) -> None:
        """End all gangs and give back what they held; the next `spawn` has the whole cluster again."""
        ...

    def accelerators(self) -> list[str]:
        """The kinds of GPU it has, in Ray's words, in order; empty where it has none, or does not know."""
        ...

    def waited_s(self) -> float:
        """Seconds the driver has spent waiting for answers so far."""
        ...

    def restarts(self) -> Mapping[str, int]:
        """How often members of each role were started again so far; roles without are left out."""
        ...

    def shutdown(self) -> None: ...


def wait(handles: Sequence[Handle[R]]) -> list[R]:
    """The answers of a fan-out."""
    return [handle.result() for handle in handles]
