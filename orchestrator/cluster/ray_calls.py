"""A call under way: its answer, and how it is asked again when a process that owed it is gone.

A handle remembers its call, whose arguments may be other handles. When a process is lost on the way to its answer, the
gang is told to start that member again, and what was lost is asked again: the calls that the member owed, in their
order, then those that waited for them. Nothing of what is there already is done twice.
"""

from __future__ import annotations

import re
import time
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Generic, Protocol, TypeVar

import ray
from ray.exceptions import (
    GetTimeoutError,
    ObjectLostError,
    ObjectStoreFullError,
    OutOfDiskError,
    OutOfMemoryError,
    RayActorError,
    RayError,
    RayTaskError,
)

from orchestrator import limits
from orchestrator.cluster.heartbeat import HeartbeatMonitor
from orchestrator.cluster.ray_host import Failure, Slot
from orchestrator.errors import (
    DeadlineExceeded,
    HostOutOfMemory,
    NoHeartbeat,
    NotFinite,
    StoreFull,
    VersionMismatch,
    WorkerFailed,
)

R = TypeVar("R")

KINDS = {"MemoryError": HostOutOfMemory, "NotFinite": NotFinite}
"""What a worker raises that has an error of its own here."""

FETCH_S = 60.0  # for an answer that is there, from wherever it is


class Clock:
    """How long the driver has waited for answers; a wait inside of a wait counts once."""

    waited_s = 0.0
    _depth = 0

    @contextmanager
    def running(self) -> Iterator[None]:
        started, self._depth = time.monotonic(), self._depth + 1
        try:
            yield
        finally:
            self._depth -= 1
            if not self._depth:
                self.waited_s += time.monotonic() - started


@dataclass(frozen=True, slots=True)
class LostWorker:
    """A member of a gang that answers no more, or not with what it should hold."""

    gang: Caller
    rank: int
    actor: str  # Ray's id of what filled the place then
    error: WorkerFailed
    method: str
    call: RayHandle[Any] | None = None  # that it died of, or with


class Caller(Protocol):
    """The gang behind a handle."""

    role: str
    actors: list[Any]
    clock: Clock
    heartbeats: HeartbeatMonitor
    members: Members
    deadline_s: float
    heartbeat_timeout_s: float

    @property
    def restarts_members(self) -> bool: ...

    def restart(self, loss: LostWorker) -> None:
        """Fill the place again and ask again what it owed; raises what ends the attempt when that cannot be."""
        ...


Members = dict[str, tuple[Caller, int]]
"""Gang and rank of every actor there is or was, by Ray's id of it."""


class RayHandle(Generic[R]):
    """One call. `submit` sends it to an actor and returns two references: to its answer, and to a receipt that says how
    the call ended without moving the answer."""

    def __init__(
        self,
        gang: Caller,
        rank: int,
        method: str,
        submit: Callable[[Any], tuple[Any, Any]],
        inputs: Sequence[RayHandle[Any]] = (),
        retryable: bool = False,
    ) -> None:
        """`retryable`: whether it may be asked more than once."""
        self.gang, self.rank, self.method = gang, rank, method
        self._submit = submit if retryable else None  # what is asked once keeps nothing alive
        self.inputs = tuple(h for h in inputs if retryable or not h.gang.restarts_members)
        self.fan_out: tuple[weakref.ref[RayHandle[Any]], ...] = (weakref.ref(self),)
        self.tries = 0  # that ended in a loss
        self._send(submit)

    def _send(self, submit: Callable[[Any], tuple[Any, Any]]) -> None:
        self.done = False
        self.actor = self.gang.actors[self.rank]
        self.ref, self.receipt = submit(self.actor)

    # ---------------------------------------------------------------------------------------- waiting

    def result(self, timeout_s: float | None = None) -> R:
        with self.gang.clock.running():
            self._settle(self.gang.deadline_s if timeout_s is None else timeout_s)
            try:
                return ray.get(self.ref, timeout=FETCH_S)  # type: ignore[no-any-return]
            except GetTimeoutError:
                raise DeadlineExceeded(self.gang.role, self.method, FETCH_S, rank=self.rank) from None
            except RayError as error:
                raise self._unfetched(error) from None

    def wait(self) -> None:
        with self.gang.clock.running():
            self._settle(self.gang.deadline_s)

    def _settle(self, limit_s: float) -> None:
        """Return when the answer is there. Raises what ended the call, if that cannot be made good."""
        while not self.done and (loss := self._watch(limit_s)) is not None:
            if self._submit is None or not loss.gang.restarts_members:
                raise loss.error
            if loss.call is not None:
                loss.call.tries += 1
            loss.gang.restart(loss)
            self.resubmit()

    def _watch(self, limit_s: float) -> LostWorker | None:
        """None when the answer is there; else what was lost on the way to it. While it is waited for, a failure of its
        siblings in the same fan-out counts as its own: a rank that died leaves the others waiting in a collective."""
        heartbeats, until = self.gang.heartbeats, time.monotonic() + limit_s
        pending = {h.receipt: h for h in (self, *self.siblings())}
        while self.receipt in pending:
            left_s = until - time.monotonic()
            if left_s <= 0:
                return self._overdue(limit_s)
            ready, _ = ray.wait(list(pending), timeout=min(left_s, heartbeats.tick_s), fetch_local=False)
            for handle in (pending.pop(ref) for ref in ready):
                if loss := handle.loss():
                    return loss
            if not ready and (loss := self._silent(set())):
                return loss
        return None

    def siblings(self) -> list[RayHandle[Any]]:
        return [h for h in (other() for other in self.fan_out) if h is not None and h is not self]

    def loss(self) -> LostWorker | None:
        """What became of a call that has ended: None when all is well. Raises what the worker raised."""
        try:
            ray.get(self.receipt, timeout=FETCH_S)
        except GetTimeoutError:
            raise DeadlineExceeded(self.gang.role, self.method, FETCH_S, rank=self.rank) from None
        except RayError as error:
            return self._loss(error)
        self.done = True
        return None

    def _loss(self, error: RayError) -> LostWorker:
        """Of the actor where it began: a call fails too when one whose answer it waits for has failed."""
        cause = error.cause if isinstance(error, RayTaskError) else error
        if isinstance(cause, Failure):
            return self._refused(cause)
        if isinstance(cause, RayActorError) and cause.actor_id in self.gang.members:
            gang, rank = self.gang.members[cause.actor_id]
            own = self._origin(cause.actor_id)
            method = own.method if own else self.method
            return LostWorker(gang, rank, cause.actor_id, _death(gang.role, rank, str(cause)), method, own)
        if isinstance(cause, OutOfMemoryError):
            return self._short_of_memory(cause)
        raise self._unfetched(cause) from None

    def _short_of_memory(self, error: OutOfMemoryError) -> LostWorker:
        """Ray ended a process because its machine ran out of memory; it does not say whose."""
        for handle in self.inputs:
            if not handle.done and handle.has_ended() and (loss := handle.loss()):
                return loss
        gang, rank, actor = self.gang, self.rank, self.actor._actor_id.hex()
        return LostWorker(gang, rank, actor, _death(gang.role, rank, str(error)), self.method, self)

    def _refused(self, failure: Failure) -> LostWorker:
        """A worker that knows that it holds the wrong weights is replaced; whatever else it raises ends the attempt."""
        role, rank, text, pid = failure.role, failure.rank, failure.traceback, failure.pid
        if failure.kind != "VersionMismatch":
            if (kind := KINDS.get(failure.kind)) is not None:
                raise kind(role, rank, text, pid=pid)
            raise WorkerFailed(role, rank, text, fix=limits.RAISE if limits.REACHED.search(text) else "", pid=pid)
        gang, _ = self.gang.members[failure.actor]
        own = self._origin(failure.actor)
        mismatch = VersionMismatch(role, rank, text, pid=pid)
        return LostWorker(gang, rank, failure.actor, mismatch, own.method if own else self.method, own)

    def _origin(self, actor: str) -> RayHandle[Any] | None:
        """The call on `actor` that this one is, or waits for."""
        if self.actor._actor_id.hex() == actor:
            return self
        return next((found for h in self.inputs if (found := h._origin(actor))), None)

    def _unfetched(self, error: BaseException) -> WorkerFailed:
        """An answer that is not there, or not where it is needed, though nobody died of it."""
        role, rank, told = self.gang.role, self.rank, " ".join(str(error).split())
        if isinstance(error, ObjectStoreFullError | OutOfDiskError):
            return StoreFull(role, rank, self.method, told)
        if isinstance(error, ObjectLostError):
            told = f"an answer that `{self.method}` needs was lost with the machine it lay on: {told}"
        return WorkerFailed(role, rank, told)

    def _overdue(self, limit_s: float) -> LostWorker:
        """Of the first call on the way to this answer that has not ended."""
        for handle in self.inputs:
            if not handle.has_ended():
                return handle._overdue(limit_s)
        actor = self.actor._actor_id.hex()
        pid = self.gang.heartbeats.pid(actor)
        error = DeadlineExceeded(self.gang.role, self.method, limit_s, rank=self.rank, pid=pid)
        return LostWorker(self.gang, self.rank, actor, error, self.method, self)

    def _silent(self, seen: set[int]) -> LostWorker | None:
        """Whoever this call, its siblings or what they wait for hangs on, and gives no sign of life."""
        heartbeats = self.gang.heartbeats
        for handle in (self, *self.siblings()):
            if id(handle) in seen or handle.done:
                continue
            seen.add(id(handle))
            actor, limit_s = handle.actor._actor_id.hex(), self.gang.heartbeat_timeout_s
            if heartbeats.silent_s(actor) >= limit_s:
                role, pid = handle.gang.role, heartbeats.pid(actor)
                error = NoHeartbeat(role, handle.method, limit_s, rank=handle.rank, pid=pid)
                return LostWorker(handle.gang, handle.rank, actor, error, handle.method, handle)
            for other in handle.inputs:
                if loss := other._silent(seen):
                    return loss
        return None

    # ---------------------------------------------------------------------------------------- asking again

    def resubmit(self, *, together: bool = False) -> None:
        """Ask again if the answer is lost, and before that for what it is made of. `together`: even if it is there,
        because the siblings of this call cannot be asked without it."""
        if self._submit is None or (not together and not self.is_lost()):
            return
        for handle in self.inputs:
            handle.resubmit()
        self._send(self._submit)

    def is_lost(self) -> bool:
        """Whether the call has ended without an answer. One on an actor that is gone is about to end."""
        replaced = self.gang.actors[self.rank] is not self.actor
        if not self.has_ended(FETCH_S if replaced else 0):
            return replaced
        try:
            return self.loss() is not None
        except WorkerFailed:
            return replaced  # a new member may do better; the same one would raise again

    def is_done(self) -> bool:
        """Whether this answer and those of its siblings are known to be there."""
        return all(h.done for h in (self, *self.siblings()))

    def is_silent(self) -> bool:
        """Whether whoever owes the answer gives no sign of life."""
        return self._silent(set()) is not None

    def has_ended(self, within_s: float = 0) -> bool:
        return bool(ray.wait([self.receipt], timeout=within_s, fetch_local=False)[0])


def first(handles: Sequence[RayHandle[R]], limit_s: float) -> RayHandle[R]:
    """Whichever has its answer first. Raises what ended a call, and DeadlineExceeded when none has ended by then."""
    until, tick_s = time.monotonic() + limit_s, handles[0].gang.heartbeats.tick_s
    while True:
        left_s = max(0.0, until - time.monotonic())
        ended = next((h for h in handles if h.has_ended() or h.is_silent()), None)
        if ended is not None:
            ended.result(limit_s)
            return ended
        if not left_s:
            raise handles[0]._overdue(limit_s).error
        ray.wait([h.receipt for h in handles], timeout=min(tick_s, left_s), fetch_local=False)


def with_slots(argument: Any, refs: list[Any]) -> Any:
    """The argument with every handle in it replaced by a slot, its reference appended to `refs`."""
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


def _death(role: str, rank: int, report: str) -> WorkerFailed:
    """What Ray knows of an actor's death, in one line; its own report is a paragraph of guesses."""
    text = " ".join(report.split())
    found = re.search(r"pid: (\d+)", text)
    pid = int(found[1]) if found else None
    if "its node has died" in text:
        place, why = re.search(r" ip: (\S+)", text), re.search(r"terminated (?:un)?expectedly: (.*?)\.?$", text)
        machine = f"its machine{f' ({place[1]})' if place else ''} was lost"
        return WorkerFailed(role, rank, f"{machine}: {why[1]}" if why else machine, pid=pid)
    if unanswered := re.search(r"The actor \w+ is unavailable: (.*?)\.? The task may", text):
        return WorkerFailed(role, rank, f"its process could not be reached: {unanswered[1]}", pid=pid)
    detail = re.search(r"Worker exit detail: (.*?)(?: Some common causes| If the process|$)", text)
    cause = detail[1].rstrip(". )") if detail else text
    kind = HostOutOfMemory if re.search(r"low on memory|OutOfMemory|memory pressure", cause) else WorkerFailed
    return kind(role, rank, f"its process{f' (pid {pid})' if pid else ''} died: {cause}", pid=pid)
