"""Handles: what the driver holds of a call, to wait for its result or to pass it on to other calls."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Generic, TypeVar

import ray
from ray.exceptions import RayError

from orchestrator.cluster.ray_calls import FETCH_S, Call
from orchestrator.cluster.ray_host import Slot
from orchestrator.cluster.ray_recovery import unfetched
from orchestrator.cluster.ray_waiting import lost_worker, overdue, wait_for

R = TypeVar("R")


class RayHandle(Call, Generic[R]):
    """A call whose result can be waited for. Implements `base.Handle`."""

    def result(self, timeout_s: float | None = None) -> R:
        with self.gang.clock.running():
            wait_for(self, timeout_s)
            try:
                return ray.get(self.ref, timeout=FETCH_S)  # type: ignore[no-any-return]
            except RayError as error:
                raise unfetched(self, error) from None

    def wait(self) -> None:
        with self.gang.clock.running():
            wait_for(self)


def first(handles: Sequence[RayHandle[R]], limit_s: float) -> RayHandle[R]:
    """Return the first handle whose call succeeds.

    Raises:
        WorkerFailed: what ended a call.
        DeadlineExceeded: no call has ended after `limit_s`.
    """
    until, tick_s = time.monotonic() + limit_s, handles[0].gang.heartbeats.tick_s
    while True:
        left_s = max(0.0, until - time.monotonic())
        ended = next((h for h in handles if h.has_ended() or lost_worker(h) is not None), None)
        if ended is not None:
            ended.result(limit_s)
            return ended
        if not left_s:
            raise overdue(handles[0], limit_s).error
        ray.wait([h.receipt for h in handles], timeout=min(tick_s, left_s), fetch_local=False)


def with_slots(argument: Any, refs: list[Any]) -> Any:
    """Return the argument with every handle in it replaced by a slot, and append the handle's reference to `refs`."""
    if isinstance(argument, RayHandle):
        refs.append(argument.ref)
        return Slot(len(refs) - 1)
    if isinstance(argument, list | tuple):
        return type(argument)(with_slots(a, refs) for a in argument)
    return argument


def handles_in(*arguments: Any) -> Iterator[RayHandle[Any]]:
    for argument in arguments:
        if isinstance(argument, RayHandle):
            yield argument
        elif isinstance(argument, list | tuple):
            yield from handles_in(*argument)
        elif isinstance(argument, Mapping):
            yield from handles_in(*argument.values())
