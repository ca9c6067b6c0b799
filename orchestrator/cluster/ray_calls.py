"""One call to a member of a gang: where it was sent, what it takes as input, and how it is sent again.

A call keeps its arguments, which may be the results of other calls. When a member is lost, it is restarted, and its
unfinished calls are submitted again in their order, then those that waited for their results. A result that exists is
not computed again, unless the ranks of the gang have to run together.

    ray_calls       Call: the state of one call
    ray_recovery    the table of failures that are retried; restarting a member, resubmitting calls
    ray_waiting     waiting for a call: its siblings, heartbeats, deadlines
    ray_handle      RayHandle: what the driver holds of a call, to wait for its result or to pass it on
"""

from __future__ import annotations

import time
import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

import ray

from orchestrator.cluster.heartbeat import HeartbeatMonitor
from orchestrator.errors import WorkerFailed

FETCH_S = 60.0
"""Time limit to fetch a result or a receipt that exists, from whichever machine holds it."""


class Clock:
    """Time that the driver has spent waiting for results. A wait inside another wait counts once.

    `on_idle` is called every few seconds of a wait, but not within a wait that it or a restart begins.
    """

    waited_s = 0.0
    _depth = 0

    def __init__(self) -> None:
        self.on_idle: Callable[[], object] = lambda: None

    def idle(self) -> None:
        if self._depth == 1:
            self.on_idle()

    @contextmanager
    def running(self) -> Iterator[None]:
        started, self._depth = time.monotonic(), self._depth + 1
        try:
            yield
        finally:
            self._depth -= 1
            if not self._depth:
                self.waited_s += time.monotonic() - started


class CalledGang(Protocol):
    """The gang that a call belongs to."""

    role: str
    actors: list[Any]
    clock: Clock
    heartbeats: HeartbeatMonitor
    members: Members
    progress_timeout_s: float
    heartbeat_timeout_s: float

    @property
    def restarts_members(self) -> bool: ...

    def restart(self, loss: LostWorker) -> None:
        """Replace the lost member and resubmit its unfinished calls. Raise if it cannot be replaced."""
        ...


Members = dict[str, tuple[CalledGang, int]]
"""Gang and rank of every actor that is or was alive, by Ray's id of the actor."""


class Call:
    """One call to one member of a gang: to the actor that fills the member's place at the time of submission."""

    def __init__(
        self,
        gang: CalledGang,
        rank: int,
        method: str,
        submit: Callable[[Any], tuple[Any, Any]],
        inputs: Sequence[Call] = (),
        retryable: bool = False,
    ) -> None:
        """Submit the call.

        Args:
            submit: sends the call to an actor. Returns two references: to the result, and to a receipt, which tells how
                the call ended without moving the result.
            inputs: calls whose results are arguments of this one.
            retryable: whether the call may be submitted more than once.
        """
        self.gang, self.rank, self.method = gang, rank, method
        # A call that is submitted once drops its arguments and inputs, so that Ray can free them.
        self._submit = submit if retryable else None
        self.inputs = tuple(c for c in inputs if retryable or not c.gang.restarts_members)
        self.fan_out: tuple[weakref.ref[Call], ...] = (weakref.ref(self),)
        self.num_losses = 0  # how often a worker was lost during this call
        self._send(submit)

    def _send(self, submit: Callable[[Any], tuple[Any, Any]]) -> None:
        self.done = False  # True once the call is known to have succeeded
        self.actor = self.gang.actors[self.rank]
        self.ref, self.receipt = submit(self.actor)

    @property
    def is_retryable(self) -> bool:
        return self._submit is not None

    def submit_again(self) -> None:
        assert self._submit is not None, f"`{self.method}` may be submitted once only"
        self._send(self._submit)

    @property
    def actor_id(self) -> str:
        return str(self.actor._actor_id.hex())

    def siblings(self) -> list[Call]:
        """Return the other calls of the same fan-out, as far as somebody still holds them."""
        return [c for c in (other() for other in self.fan_out) if c is not None and c is not self]

    def has_ended(self, within_s: float = 0) -> bool:
        return bool(ray.wait([self.receipt], timeout=within_s, fetch_local=False)[0])

    def fan_out_is_done(self) -> bool:
        """Return whether this call and its siblings are known to have succeeded."""
        return all(c.done for c in (self, *self.siblings()))


@dataclass(frozen=True, slots=True)
class LostWorker:
    """A gang member to replace: it died, hangs, or holds the wrong weights."""

    gang: CalledGang
    rank: int
    actor: str  # Ray's id of the actor to replace
    error: WorkerFailed  # the reason; raised if the member cannot be replaced
    method: str
    call: Call | None = None  # the call that it was executing, if known
