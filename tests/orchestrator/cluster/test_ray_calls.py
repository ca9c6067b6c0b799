"""What Ray raises, as what it is: who was lost and why, or why an answer is not there. Ray itself does not run here."""

from __future__ import annotations

from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import pytest
from ray import ActorID
from ray.exceptions import (
    ActorUnavailableError,
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
from orchestrator.cluster.ray_calls import RayHandle
from orchestrator.cluster.ray_host import Failure
from orchestrator.errors import HostOutOfMemory, StoreFull, WorkerFailed

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
class Gang:
    """One member, `aa00`, that may be started again."""

    role: str = "rollout"
    restarts_members: bool = True
    actors: list[Any] = field(default_factory=lambda: [actor("aa00")])
    members: dict[str, Any] = field(default_factory=dict)


def actor(name: str) -> Any:
    return SimpleNamespace(_actor_id=SimpleNamespace(hex=lambda: name))


@pytest.fixture
def call() -> RayHandle[Any]:
    gang = Gang()
    gang.members["aa00"] = (gang, 0)
    return RayHandle(gang, 0, "generate", lambda _: (None, None), again=True)  # type: ignore[arg-type]


def in_a_task(cause: Exception) -> RayTaskError:
    """As it comes when a worker could not be given, or could not keep, what it was called with, or for."""
    return RayTaskError("generate", "Traceback …", cause, actor_id="aa00")


def test_a_machine_that_is_lost(call: RayHandle[Any]) -> None:
    loss = call._loss(RayActorError("aa00", NODE_DIED))
    why = "its machine (192.0.2.7) was lost: health check failed due to missing too many heartbeats"
    assert str(loss.error) == f"rollout rank 0 failed: {why}"
    assert (loss.rank, loss.actor, loss.error.pid, loss.call) == (0, "aa00", 4711, call)


def test_f45_a_process_that_was_ended_for_its_memory_can_be_started_again(call: RayHandle[Any]) -> None:
    """Ray has an error of its own for it, which does not say whose process it was."""
    loss = call._loss(OutOfMemoryError(NO_MEMORY))
    assert isinstance(loss.error, HostOutOfMemory)
    assert (loss.rank, loss.actor, loss.method, loss.call) == (0, "aa00", "generate", call)
    assert "running low on memory" in str(loss.error)


@pytest.mark.parametrize("full", [ObjectStoreFullError("full"), OutOfDiskError("full")])
def test_f47_no_room_for_an_answer(call: RayHandle[Any], full: RayError) -> None:
    for error in (full, in_a_task(full)):
        with pytest.raises(StoreFull, match="no room for the answer of rollout rank 0 to `generate`"):
            call._loss(error)


def test_f50_a_worker_that_may_open_no_more_files_is_told_how_to(call: RayHandle[Any]) -> None:
    told = "Traceback …\nOSError: [Errno 24] Too many open files: 'x'"
    with pytest.raises(WorkerFailed) as failed:
        call._loss(in_a_task(Failure("rollout", 0, "aa00", "OSError", told, 4711)))
    assert failed.value.problems[0].fix == limits.RAISE


def test_f44_who_cannot_be_reached_is_replaced(call: RayHandle[Any]) -> None:
    name = ActorID(bytes(range(16)))
    call.gang.members[name.hex()] = (call.gang, 0)
    call.actor = actor(name.hex())
    loss = call._loss(ActorUnavailableError("RpcError: the reply was lost", name.binary()))
    assert str(loss.error) == "rollout rank 0 failed: its process could not be reached: RpcError: the reply was lost"
    assert (loss.rank, loss.actor, loss.call) == (0, name.hex(), call)


@pytest.mark.parametrize(
    ("error", "text"),
    [
        (ObjectLostError("ab", None, ""), "an answer that `generate` needs was lost with the machine it lay on"),
        (RaySystemError("something else"), "something else"),
    ],
)
def test_whatever_else_ray_raises_ends_the_attempt_by_name(call: RayHandle[Any], error: RayError, text: str) -> None:
    with pytest.raises(WorkerFailed, match="rollout rank 0 failed") as failed:
        call._loss(error)
    assert text in str(failed.value)
