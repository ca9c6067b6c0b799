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
    a process group also gets `address` and `port`, where member 0 lives."""

    role: str
    start: Callable[..., Any]
    arguments: Sequence[Mapping[str, Any]]
    resources: Resources
    meet: bool = False


class Gang(Protocol[W_co]):
    """The workers of one role."""

    role: str

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

    def accelerators(self) -> list[str]:
        """The kinds of GPU it has, in Ray's words, in order; empty where it has none, or does not know."""
        ...

    def waited_s(self) -> float:
        """Seconds the driver has spent waiting for answers so far."""
        ...

    def shutdown(self) -> None: ...


def wait(handles: Sequence[Handle[R]]) -> list[R]:
    """The answers of a fan-out."""
    return [handle.result() for handle in handles]
