"""Waiting for a call: until it has succeeded, or a worker that it depends on is lost.

The driver watches the whole fan-out of the call: a rank that died leaves the others waiting in a collective. A call may
take as long as it makes progress; only a start has a time limit of its own.
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from typing import TypeVar

import ray

from orchestrator.cluster.ray_calls import Call, LostWorker
from orchestrator.cluster.ray_recovery import classify, find_loss, recover
from orchestrator.errors import DeadlineExceeded, NoHeartbeat

C = TypeVar("C", bound=Call)
IDLE = 1.5
"""Multiple of the progress timeout after which a call counts as lost that an idle worker has not begun."""


START = "start"
"""The call that loads a worker. It has a time limit instead."""


def wait_for(call: Call, limit_s: float | None = None) -> None:
    """Return when the call has succeeded. A resubmitted call gets the full `limit_s` again. None: no limit.

    Raises:
        WorkerFailed: what ended the call, if it is not retried (`ray_recovery.RULES`).
        FleetExhausted: the lost worker's role has no restarts left.
    """
    while not call.done and (loss := watch(call, limit_s)) is not None:
        recover(call, loss)


def wait_first(calls: Sequence[C], limit_s: float | None = None) -> C:
    """Return the first of several calls that succeeds. Raise as `wait_for` does if one fails.

    Raises:
        DeadlineExceeded: none has succeeded after `limit_s`. None: no limit.
    """
    until = math.inf if limit_s is None else time.monotonic() + limit_s
    while True:
        for call in calls:
            if not call.done and (loss := lost_worker(call)):
                recover(call, loss)
            if call.done:
                return call
        left_s = until - time.monotonic()
        if limit_s is not None and left_s <= 0:
            raise overdue(calls[0], limit_s).error
        # Those that have ended are done by now: with them in the list, `ray.wait` would return at once.
        watched: list[Call] = [*calls, *(sibling for call in calls for sibling in call.siblings())]
        receipts, tick_s = {c.receipt for c in watched if not c.done}, calls[0].gang.heartbeats.tick_s
        if not ray.wait(list(receipts), timeout=min(tick_s, left_s), fetch_local=False)[0]:
            calls[0].gang.clock.idle()


def watch(call: Call, limit_s: float | None) -> LostWorker | None:
    """Return None when the call has succeeded, else the worker that was lost on the way.

    Raises:
        WorkerFailed: what ended the call or a sibling, if it is not retried.
    """
    heartbeats, until = call.gang.heartbeats, None if limit_s is None else time.monotonic() + limit_s
    pending = {c.receipt: c for c in (call, *call.siblings())}
    while call.receipt in pending:
        left_s = heartbeats.tick_s if until is None else until - time.monotonic()
        if limit_s is not None and left_s <= 0:
            return overdue(call, limit_s)
        ready, _ = ray.wait(list(pending), timeout=min(left_s, heartbeats.tick_s), fetch_local=False)
        for ended in (pending.pop(receipt) for receipt in ready):
            if loss := find_loss(ended):
                return loss
        if not ready and (loss := lost_worker(call)):
            return loss
        if not ready:
            call.gang.clock.idle()
    return None


def overdue(call: Call, limit_s: float) -> LostWorker:
    """Return the worker that a call is waiting for after `limit_s`: that of the first input that has not ended."""
    for given in call.inputs:
        if not given.has_ended():
            return overdue(given, limit_s)
    pid = call.gang.heartbeats.pid(call.actor_id)
    return classify(call, DeadlineExceeded(call.gang.role, call.method, limit_s, rank=call.rank, pid=pid))


def lost_worker(call: Call) -> LostWorker | None:
    """Return a worker that is lost, among those that this call, its siblings and their inputs wait for.

    Calls that have succeeded are marked as done: their workers are idle, and may be.
    """
    return _lost_worker(call, set())


def _lost_worker(call: Call, visited: set[int]) -> LostWorker | None:
    for waiting in (call, *call.siblings()):
        if id(waiting) in visited or waiting.done:
            continue
        visited.add(id(waiting))
        if waiting.has_ended():
            if loss := find_loss(waiting):
                return loss
            continue
        for given in waiting.inputs:  # first: a worker that waits for another one makes no progress either
            if loss := _lost_worker(given, visited):
                return loss
        if error := _fault(waiting):
            return classify(waiting, error)
    return None


def _fault(call: Call) -> NoHeartbeat | DeadlineExceeded | None:
    gang, seen = call.gang, call.gang.heartbeats.observe(call.actor_id)
    if seen is None:
        return None
    if seen.silent_s >= gang.heartbeat_timeout_s:
        return NoHeartbeat(gang.role, call.method, gang.heartbeat_timeout_s, rank=call.rank, pid=seen.beat.pid)
    limit_s = gang.progress_timeout_s * (1 if seen.beat.is_busy else IDLE)
    if call.method == START or seen.stalled_s < limit_s or any(not given.has_ended() for given in call.inputs):
        return None
    return DeadlineExceeded(gang.role, call.method, limit_s, rank=call.rank, pid=seen.beat.pid)
