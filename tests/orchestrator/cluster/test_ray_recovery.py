"""Failures of calls: which are retried and which are raised, whose they are, and what is resubmitted. Without Ray."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import pytest
from ray import ActorID
from ray.exceptions import (
    ActorUnavailableError,
    GetTimeoutError,
    ObjectLostError,
    ObjectStoreFullError,
    OutOfDiskError,
    OutOfMemoryError,
    RayActorError,
    RayError,
    RaySystemError,
    RayTaskError,
)

from orchestrator import limits
from orchestrator.cluster.ray_calls import Call, LostWorker
from orchestrator.cluster.ray_host import Failure
from orchestrator.cluster.ray_recovery import classify, recover, resubmit, unfetched
from orchestrator.errors import (
    DeadlineExceeded,
    HostOutOfMemory,
    NoHeartbeat,
    NotFinite,
    StoreFull,
    VersionMismatch,
    WorkerFailed,
)

NODE_DIED = """The actor died unexpectedly before finishing this task.
	class_name: Host
	actor_id: aa00
	pid: 4711
	namespace: rlhf
	ip: 192.0.2.7
The actor died because its node has died. Node Id: 3f
	the actor's node was terminated unexpectedly: health check failed due to missing too many heartbeats"""
NO_MEMORY = "1 worker(s) were killed due to the node running low on memory. Memory on the node was 23.1GB / 24.0GB."


@dataclass
class FakeGang:
    """Gang of one member, the actor `aa00`. A restart replaces it by `aa01`, then `aa02`, …."""

    role: str = "rollout"
    restarts_members: bool = True
    actors: list[Any] = field(default_factory=lambda: [actor("aa00")])
    members: dict[str, Any] = field(default_factory=dict)
    events: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.members["aa00"] = (self, 0)

    def restart(self, loss: LostWorker) -> None:
        self.events.append(f"restart {self.role} {loss.rank}")
        self.actors[loss.rank] = actor(f"aa0{len(self.events)}")


class UnfinishedCall(Call):
    """Call that does not end, so that one on a replaced actor counts as lost."""

    def has_ended(self, within_s: float = 0) -> bool:
        return False


def actor(name: str) -> Any:
    return SimpleNamespace(_actor_id=SimpleNamespace(hex=lambda: name))


def a_call(gang: Any, method: str = "generate", inputs: Sequence[Call] = (), retryable: bool = True) -> UnfinishedCall:
    def submit(to: Any) -> tuple[None, None]:
        gang.events.append(f"{method} to {to._actor_id.hex()}")
        return None, None

    return UnfinishedCall(gang, 0, method, submit, inputs, retryable)


@pytest.fixture
def call() -> Call:
    return a_call(FakeGang())


def in_a_task(cause: Exception) -> RayTaskError:
    """Wrap an error as Ray does if a worker could not get its arguments or store its result."""
    return RayTaskError("generate", "Traceback …", cause, actor_id="aa00")


def raised(kind: str, traceback: str = "Traceback …\nError: wrong") -> RayTaskError:
    """Return the exception of class `kind` of a worker, as it arrives."""
    return in_a_task(Failure("rollout", 0, "aa00", kind, traceback, 4711))


# ------------------------------------------------------------------------------------------- classification of failures


@pytest.mark.parametrize(
    ("seen", "error"),
    [
        (raised("VersionMismatch"), VersionMismatch),
        (RayActorError("aa00", NODE_DIED), WorkerFailed),
        (OutOfMemoryError(NO_MEMORY), HostOutOfMemory),
        (NoHeartbeat("rollout", "generate", 180, rank=0), NoHeartbeat),
        (DeadlineExceeded("rollout", "generate", 1800, rank=0), DeadlineExceeded),
    ],
)
def test_these_failures_restart_the_member(call: Call, seen: BaseException, error: type[WorkerFailed]) -> None:
    loss = classify(call, seen)
    assert type(loss.error) is error
    assert (loss.gang, loss.rank, loss.actor, loss.method, loss.call) == (call.gang, 0, "aa00", "generate", call)


@pytest.mark.parametrize(
    ("seen", "error"),
    [
        (raised("MemoryError"), HostOutOfMemory),
        (raised("NotFinite"), NotFinite),
        (raised("KeyError"), WorkerFailed),
        (GetTimeoutError("slow"), DeadlineExceeded),
        (ObjectStoreFullError("full"), StoreFull),
        (OutOfDiskError("full"), StoreFull),
        (ObjectLostError("ab", None, ""), WorkerFailed),
        (RayActorError("bb00", "an actor of another driver"), WorkerFailed),
        (RaySystemError("something else"), WorkerFailed),
    ],
)
def test_these_failures_are_raised(call: Call, seen: BaseException, error: type[WorkerFailed]) -> None:
    with pytest.raises(WorkerFailed) as failed:
        classify(call, seen)
    assert type(failed.value) is error


def test_a_result_that_cannot_be_fetched_is_never_retried(call: Call) -> None:
    assert type(unfetched(call, GetTimeoutError("slow"))) is DeadlineExceeded
    assert type(unfetched(call, ObjectStoreFullError("full"))) is StoreFull
    assert type(unfetched(call, RayActorError("aa00", NODE_DIED))) is WorkerFailed


# ------------------------------------------------------------------------------------------------ error texts


def test_a_machine_that_is_lost(call: Call) -> None:
    loss = classify(call, RayActorError("aa00", NODE_DIED))
    why = "its machine (192.0.2.7) was lost: health check failed due to missing too many heartbeats"
    assert str(loss.error) == f"rollout rank 0 failed: {why}"
    assert loss.error.pid == 4711


def test_f45_a_process_that_was_killed_for_its_memory_can_be_restarted(call: Call) -> None:
    """Check the error that Ray has for a lack of memory, which does not name the process."""
    loss = classify(call, OutOfMemoryError(NO_MEMORY))
    assert (loss.rank, loss.actor, loss.method, loss.call) == (0, "aa00", "generate", call)
    assert "running low on memory" in str(loss.error)


@pytest.mark.parametrize("full", [ObjectStoreFullError("full"), OutOfDiskError("full")])
def test_f47_no_room_for_an_answer(call: Call, full: RayError) -> None:
    for error in (full, in_a_task(full)):
        with pytest.raises(StoreFull, match="no room for the result of `generate` from rollout rank 0"):
            classify(call, error)


def test_f50_the_error_of_a_worker_at_its_file_limit_has_a_fix(call: Call) -> None:
    with pytest.raises(WorkerFailed) as failed:
        classify(call, raised("OSError", "Traceback …\nOSError: [Errno 24] Too many open files: 'x'"))
    assert failed.value.problems[0].fix == limits.RAISE


def test_f44_a_member_that_cannot_be_reached_is_replaced(call: Call) -> None:
    name = ActorID(bytes(range(16)))
    call.gang.members[name.hex()] = (call.gang, 0)
    call.actor = actor(name.hex())
    loss = classify(call, ActorUnavailableError("RpcError: the reply was lost", name.binary()))
    assert str(loss.error) == "rollout rank 0 failed: its process could not be reached: RpcError: the reply was lost"
    assert (loss.rank, loss.actor, loss.call) == (0, name.hex(), call)


@pytest.mark.parametrize(
    ("error", "text"),
    [
        (ObjectLostError("ab", None, ""), "a result that `generate` needs was lost with the machine that stored it"),
        (RaySystemError("something else"), "something else"),
    ],
)
def test_other_errors_of_ray_are_raised_with_their_text(call: Call, error: RayError, text: str) -> None:
    with pytest.raises(WorkerFailed, match="rollout rank 0 failed") as failed:
        classify(call, error)
    assert text in str(failed.value)


# ------------------------------------------------------------------------------------------------ recovery


def test_a_call_that_fails_with_its_input_names_the_member_that_computed_the_input() -> None:
    rollout, reward = FakeGang(), FakeGang("reward")
    sampled = a_call(rollout)
    scored = a_call(reward, "score", [sampled])
    scored.actor = reward.actors[0] = actor("bb00")
    scored.gang.members.update(rollout.members)  # one table for all gangs
    for seen in (RayActorError("aa00", NODE_DIED), raised("VersionMismatch")):
        loss = classify(scored, seen)
        assert (loss.gang, loss.actor, loss.method, loss.call) == (rollout, "aa00", "generate", sampled)


def test_a_lost_call_is_resubmitted_to_the_new_member_after_its_inputs() -> None:
    gang = FakeGang()
    sampled = a_call(gang)
    scored = a_call(gang, "score", [sampled])
    loss = classify(scored, RayActorError("aa00", NODE_DIED))
    recover(scored, loss)
    assert gang.events[2:] == ["restart rollout 0", "generate to aa03", "score to aa03"]
    assert (scored.num_losses, sampled.num_losses) == (1, 0)


def test_a_call_that_is_not_lost_is_resubmitted_only_with_its_siblings() -> None:
    gang = FakeGang()
    call = a_call(gang)
    resubmit(call)
    assert gang.events == ["generate to aa00"]
    resubmit(call, together=True)
    assert gang.events == ["generate to aa00"] * 2


@pytest.mark.parametrize(("retryable", "restarts_members"), [(False, True), (True, False)])
def test_without_a_retry_the_loss_is_raised(retryable: bool, restarts_members: bool) -> None:
    gang = FakeGang(restarts_members=restarts_members)
    call = a_call(gang, retryable=retryable)
    loss = classify(call, RayActorError("aa00", NODE_DIED))
    with pytest.raises(WorkerFailed, match="its machine"):
        recover(call, loss)
    assert gang.events == ["generate to aa00"]
