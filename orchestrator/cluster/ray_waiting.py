"""Waiting for a call: until it has succeeded, a worker that it depends on is lost, or its time is over.

The driver watches the whole fan-out of the call: a rank that died leaves the others waiting in a collective.
"""

from __future__ import annotations

import time

import ray

from orchestrator.cluster.ray_calls import Call, LostWorker
from orchestrator.cluster.ray_recovery import classify, find_loss, recover
from orchestrator.errors import DeadlineExceeded, NoHeartbeat


def wait_for(call: Call, limit_s: float) -> None:
    """Return when the call has succeeded. A resubmitted call gets the full `limit_s` again.

    Raises:
        WorkerFailed: what ended the call, if it is not retried (`ray_recovery.RULES`).
        FleetExhausted: the lost worker's role has no restarts left.
    """
    while not call.done and (loss := watch(call, limit_s)) is not None:
        recover(call, loss)


def watch(call: Call, limit_s: float) -> LostWorker | None:
    """Return None when the call has succeeded, else the worker that was lost on the way.

    Raises:
        WorkerFailed: what ended the call or a sibling, if it is not retried.
    """
    heartbeats, until = call.gang.heartbeats, time.monotonic() + limit_s
    pending = {c.receipt: c for c in (call, *call.siblings())}
    while call.receipt in pending:
        left_s = until - time.monotonic()
        if left_s <= 0:
            return overdue(call, limit_s)
        ready, _ = ray.wait(list(pending), timeout=min(left_s, heartbeats.tick_s), fetch_local=False)
        for ended in (pending.pop(receipt) for receipt in ready):
            if loss := find_loss(ended):
                return loss
        if not ready and (loss := silent(call)):
            return loss
    return None


def overdue(call: Call, limit_s: float) -> LostWorker:
    """Return the worker that a call is waiting for after `limit_s`: that of the first input that has not ended."""
    for given in call.inputs:
        if not given.has_ended():
            return overdue(given, limit_s)
    pid = call.gang.heartbeats.pid(call.actor_id)
    return classify(call, DeadlineExceeded(call.gang.role, call.method, limit_s, rank=call.rank, pid=pid))


def silent(call: Call) -> LostWorker | None:
    """Return a worker without heartbeat among those that this call, its siblings or their inputs wait for."""
    return _silent(call, set())


def _silent(call: Call, visited: set[int]) -> LostWorker | None:
    heartbeats, limit_s = call.gang.heartbeats, call.gang.heartbeat_timeout_s
    for waiting in (call, *call.siblings()):
        if id(waiting) in visited or waiting.done:
            continue
        visited.add(id(waiting))
        if heartbeats.silent_s(waiting.actor_id) >= limit_s:
            pid = heartbeats.pid(waiting.actor_id)
            error = NoHeartbeat(waiting.gang.role, waiting.method, limit_s, rank=waiting.rank, pid=pid)
            return classify(waiting, error)
        for given in waiting.inputs:
            if loss := _silent(given, visited):
                return loss
    return None
