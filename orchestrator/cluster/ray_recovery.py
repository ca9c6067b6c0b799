"""Recovery from a failed call: which failures are retried, and how.

`RULES` is the whole policy. RESTART: the member is restarted and its unfinished calls are submitted again. This needs a
call that may be repeated and a gang that restarts its members; otherwise the error of the rule is raised.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

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
from orchestrator.cluster.ray_calls import FETCH_S, Call, LostWorker
from orchestrator.cluster.ray_death import death
from orchestrator.cluster.ray_host import Failure
from orchestrator.errors import (
    DeadlineExceeded,
    HostOutOfMemory,
    NoHeartbeat,
    NotFinite,
    StoreFull,
    VersionMismatch,
    WorkerFailed,
)

RESTART: Literal["restart"] = "restart"
RAISE: Literal["raise"] = "raise"

Matches = Callable[[Call, BaseException], bool]
MakeError = Callable[[Call, Any], WorkerFailed]


@dataclass(frozen=True, slots=True)
class Rule:
    """Kind of failure, and what follows from it."""

    matches: Matches
    then: Literal["restart", "raise"]
    error: MakeError  # what is raised, or the reason for the restart


# ------------------------------------------------------------------------------------------------ columns of the table


def _is_a(*types: type[BaseException]) -> Matches:
    return lambda call, seen: isinstance(seen, types)


def _worker_raised(name: str) -> Matches:
    # By name: a worker's exception arrives as text.
    return lambda call, seen: isinstance(seen, Failure) and seen.kind == name


def _member_died(call: Call, seen: BaseException) -> bool:
    return isinstance(seen, RayActorError) and seen.actor_id in call.gang.members


def _as(kind: type[VersionMismatch] | type[HostOutOfMemory] | type[NotFinite]) -> MakeError:
    return lambda call, failure: kind(failure.role, failure.rank, failure.traceback, pid=failure.pid)


def _worker_error(call: Call, failure: Failure) -> WorkerFailed:
    fix = limits.RAISE if limits.REACHED.search(failure.traceback) else ""
    return WorkerFailed(failure.role, failure.rank, failure.traceback, fix=fix, pid=failure.pid)


def _death_of_member(call: Call, error: RayActorError) -> WorkerFailed:
    gang, rank = call.gang.members[error.actor_id]
    return death(gang.role, rank, str(error))


def _death_of_called(call: Call, error: OutOfMemoryError) -> WorkerFailed:
    return death(call.gang.role, call.rank, str(error))


def _itself(call: Call, error: WorkerFailed) -> WorkerFailed:
    return error


def _not_fetched(call: Call, error: GetTimeoutError) -> WorkerFailed:
    return DeadlineExceeded(call.gang.role, call.method, FETCH_S, rank=call.rank)


def _store_full(call: Call, error: BaseException) -> WorkerFailed:
    return StoreFull(call.gang.role, call.rank, call.method, _one_line(error))


def _result_lost(call: Call, error: BaseException) -> WorkerFailed:
    reason = f"a result that `{call.method}` needs was lost with the machine that stored it: {_one_line(error)}"
    return WorkerFailed(call.gang.role, call.rank, reason)


def _other_error(call: Call, error: BaseException) -> WorkerFailed:
    return WorkerFailed(call.gang.role, call.rank, _one_line(error))


# ------------------------------------------------------------------------------------------------ the table

UNFETCHED = (
    # Seen                                             Then     Error
    Rule(_is_a(GetTimeoutError),                       RAISE,   _not_fetched),      # DeadlineExceeded
    Rule(_is_a(ObjectStoreFullError, OutOfDiskError),  RAISE,   _store_full),       # StoreFull
    Rule(_is_a(ObjectLostError),                       RAISE,   _result_lost),      # WorkerFailed
    Rule(_is_a(BaseException),                         RAISE,   _other_error),      # WorkerFailed
)  # fmt: skip
"""Rules for a result that cannot be stored or fetched although no worker died. The first match counts."""

RULES = (
    # Seen                                             Then     Error
    Rule(_worker_raised("VersionMismatch"),            RESTART, _as(VersionMismatch)),
    Rule(_worker_raised("MemoryError"),                RAISE,   _as(HostOutOfMemory)),
    Rule(_worker_raised("NotFinite"),                  RAISE,   _as(NotFinite)),
    Rule(_is_a(Failure),                               RAISE,   _worker_error),     # WorkerFailed
    Rule(_member_died,                                 RESTART, _death_of_member),  # WorkerFailed or HostOutOfMemory
    Rule(_is_a(OutOfMemoryError),                      RESTART, _death_of_called),  # HostOutOfMemory
    Rule(_is_a(NoHeartbeat),                           RESTART, _itself),
    Rule(_is_a(DeadlineExceeded),                      RESTART, _itself),
    *UNFETCHED,
)  # fmt: skip
"""Rules for a call that failed or does not end. The first match counts."""


def _first_match(rules: Sequence[Rule], call: Call, seen: BaseException) -> Rule:
    return next(rule for rule in rules if rule.matches(call, seen))


# ------------------------------------------------------------------------------------------------ classification


def find_loss(call: Call) -> LostWorker | None:
    """Return the worker that a call was lost with; None if the call succeeded. The call must have ended.

    Raises:
        WorkerFailed: the error of a rule that says RAISE.
    """
    try:
        ray.get(call.receipt, timeout=FETCH_S)
    except RayError as error:
        return classify(call, error)
    call.done = True
    return None


def classify(call: Call, seen: BaseException) -> LostWorker:
    """Apply RULES to a failure: return the worker to restart, or raise the error."""
    seen = seen.cause if isinstance(seen, RayTaskError) else seen
    rule = _first_match(RULES, call, seen)
    if rule.then == RAISE:
        raise rule.error(call, seen) from None
    return _lost_worker(call, seen, rule.error(call, seen))


def unfetched(call: Call, error: RayError) -> WorkerFailed:
    """Return the error for the result of a successful call that cannot be fetched. Such a call is not retried."""
    return _first_match(UNFETCHED, call, error).error(call, error)


def _lost_worker(call: Call, seen: BaseException, error: WorkerFailed) -> LostWorker:
    """Return the worker that caused the failure. A call fails as well when one of its inputs has failed."""
    if isinstance(seen, OutOfMemoryError):  # Ray does not say whose process it killed
        for given in call.inputs:
            if not given.done and given.has_ended() and (loss := find_loss(given)):
                return loss
    if isinstance(seen, Failure):
        return _lost_by_id(call, seen.actor, error)
    if isinstance(seen, RayActorError):
        return _lost_by_id(call, seen.actor_id, error)
    return LostWorker(call.gang, call.rank, call.actor_id, error, call.method, call)


def _lost_by_id(call: Call, actor: str, error: WorkerFailed) -> LostWorker:
    gang, rank = call.gang.members[actor]
    origin = _call_on(actor, call)
    return LostWorker(gang, rank, actor, error, origin.method if origin else call.method, origin)


def _call_on(actor: str, call: Call) -> Call | None:
    """Return the call that `actor` was executing: `call` itself, or one that it waits for."""
    if call.actor_id == actor:
        return call
    return next((origin for given in call.inputs if (origin := _call_on(actor, given))), None)


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split())


# ------------------------------------------------------------------------------------------------ resubmission


def recover(call: Call, loss: LostWorker) -> None:
    """Restart a worker that was lost on the way to the result of `call`, and resubmit what was lost of its fan-out.

    An input that was lost fails all calls that wait for it: ranks of a collective would wait for each other.

    Raises:
        WorkerFailed: the reason for the loss, if the call or the worker may not be retried.
    """
    if not call.is_retryable or not loss.gang.restarts_members:
        raise loss.error
    if loss.call is not None:
        loss.call.num_losses += 1
    loss.gang.restart(loss)
    for lost in (call, *call.siblings()):
        resubmit(lost)


def resubmit(call: Call, *, together: bool = False) -> None:
    """Resubmit a call if its result was lost, resubmitting lost inputs first.

    With `together`, resubmit it even if the result exists: ranks in a collective must all run again.
    """
    if not call.is_retryable or (not together and not is_lost(call)):
        return
    for given in call.inputs:
        resubmit(given)
    call.submit_again()


def is_lost(call: Call) -> bool:
    """Return whether the call has ended without a result. One on an actor that is gone is about to end."""
    replaced = call.gang.actors[call.rank] is not call.actor
    if not call.has_ended(FETCH_S if replaced else 0):
        return replaced
    try:
        return find_loss(call) is not None
    except WorkerFailed:
        return replaced  # a new member may do better; the same one would raise again
