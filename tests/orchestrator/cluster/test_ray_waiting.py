"""The worker that a call is lost with while the driver waits: a silent one, or one without progress. Without Ray."""

from __future__ import annotations

from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import pytest

from orchestrator.cluster.heartbeat import HeartbeatMonitor
from orchestrator.cluster.ray_calls import Call, LostWorker
from orchestrator.cluster.ray_host import Heartbeat
from orchestrator.cluster.ray_waiting import IDLE, START, lost_worker
from orchestrator.errors import DeadlineExceeded, NoHeartbeat

TICK_S, LIMIT_S, SILENT_S = 2.5, 100.0, 20.0


class Workers:
    """Workers whose heartbeats the test writes, the cluster's store, and a clock that the test moves."""

    def __init__(self) -> None:
        self.now = 0.0
        self.heartbeats = HeartbeatMonitor(self, timeout_s=SILENT_S, address=None, clock=lambda: self.now)
        assert self.heartbeats.tick_s == TICK_S
        self.members: dict[str, Any] = {}
        self._beats: dict[str, Heartbeat] = {}

    def internal_kv_get(self, key: bytes, namespace: bytes, timeout: float) -> bytes | None:
        beat = self._beats.get(key.decode())
        return None if beat is None else str(beat).encode()

    def internal_kv_del(self, key: bytes, by_prefix: bool, namespace: bytes, timeout: float) -> int:
        raise AssertionError("no worker ends here")

    def call(self, role: str, method: str, inputs: Sequence[Call] = (), *, busy: bool) -> UnfinishedCall:
        """Send a call to the only member of `role`. `busy`: the member executes it already."""
        actor = SimpleNamespace(_actor_id=SimpleNamespace(hex=lambda: role))
        gang: Any = SimpleNamespace(
            role=role,
            actors=[actor],
            heartbeats=self.heartbeats,
            members=self.members,
            progress_timeout_s=LIMIT_S,
            heartbeat_timeout_s=SILENT_S,
            restarts_members=True,
        )
        self.members[role] = (gang, 0)
        self._beats[role] = Heartbeat(4711, "node", 0, calls=int(busy))
        return UnfinishedCall(gang, 0, method, lambda to: (None, None), inputs, retryable=True)

    def beat(self, role: str, *, progress: int = 0) -> None:
        last = self._beats[role]
        self._beats[role] = Heartbeat(4711, "node", last.count + 1, last.calls, last.progress + progress)

    def watch(self, call: Call, seconds: float, **progress: int) -> LostWorker | None:
        """Watch `call` for some seconds, tick by tick: in each, the workers named beat, with that much progress."""
        for _ in range(round(seconds / TICK_S)):
            self.now += TICK_S
            for role, more in progress.items():
                self.beat(role, progress=more)
            if loss := lost_worker(call):
                return loss
        return None


class UnfinishedCall(Call):
    def has_ended(self, within_s: float = 0) -> bool:
        return False


@pytest.fixture
def workers() -> Workers:
    return Workers()


def test_a_call_may_take_as_long_as_its_worker_makes_progress(workers: Workers) -> None:
    call = workers.call("rollout", "generate", busy=True)
    assert workers.watch(call, 50 * LIMIT_S, rollout=1) is None
    last = workers.now
    loss = workers.watch(call, 2 * LIMIT_S, rollout=0)
    assert loss is not None
    assert workers.now - last == LIMIT_S
    assert isinstance(loss.error, DeadlineExceeded)
    assert (loss.error.pid, loss.method, loss.call) == (4711, "generate", call)
    assert str(loss.error).startswith("rollout rank 0 made no progress with `generate` for 100 s")


def test_an_idle_worker_is_blamed_later(workers: Workers) -> None:
    """Give it time to begin: Ray moves the call's inputs first."""
    call = workers.call("rollout", "generate", busy=False)
    loss = workers.watch(call, 9 * LIMIT_S, rollout=0)
    assert loss is not None
    assert workers.now - TICK_S == IDLE * LIMIT_S  # counted from the first heartbeat that was seen
    assert "for 150 s" in str(loss.error)


def test_a_worker_that_waits_for_an_input_is_not_blamed(workers: Workers) -> None:
    generated = workers.call("rollout", "generate", busy=True)
    scored = workers.call("reward", "score", [generated], busy=False)
    assert workers.watch(scored, 10 * LIMIT_S, rollout=1, reward=0) is None
    loss = workers.watch(scored, LIMIT_S, rollout=0, reward=0)
    assert loss is not None
    assert (loss.gang.role, loss.method, loss.call) == ("rollout", "generate", generated)


def test_a_sibling_without_progress_is_named(workers: Workers) -> None:
    """The ranks of a collective wait for each other: the first one that stopped is to blame."""
    call, sibling = (workers.call(role, "logprobs", busy=True) for role in ("reference", "other"))
    call.fan_out = sibling.fan_out = (*call.fan_out, *sibling.fan_out)
    assert workers.watch(call, 0.5 * LIMIT_S, reference=1, other=0) is None
    loss = workers.watch(call, LIMIT_S, reference=0, other=0)
    assert loss is not None
    assert loss.gang.role == "other"


def test_a_start_has_a_time_limit_instead(workers: Workers) -> None:
    call = workers.call("policy", START, busy=False)
    assert workers.watch(call, 10 * LIMIT_S, policy=0) is None
    loss = workers.watch(call, LIMIT_S)
    assert loss is not None
    assert isinstance(loss.error, NoHeartbeat)


def test_a_silent_worker_is_named_before_its_progress_is_due(workers: Workers) -> None:
    call = workers.call("rollout", "generate", busy=True)
    assert workers.watch(call, LIMIT_S, rollout=1) is None
    last = workers.now
    loss = workers.watch(call, LIMIT_S)
    assert loss is not None
    assert workers.now - last == SILENT_S
    assert isinstance(loss.error, NoHeartbeat)
