"""Detection of silent processes and of a lost cluster, with a clock that the test advances."""

from __future__ import annotations

import pytest

from orchestrator.cluster.heartbeat import LOST_AFTER_S, HeartbeatMonitor
from orchestrator.cluster.ray_host import Heartbeat
from orchestrator.errors import ClusterLost


class FakeProcess:
    """One process and the store that it writes heartbeats to; the store may stop answering."""

    def __init__(self, timeout_s: float = 10.0) -> None:
        self.now, self.count, self.answers, self.has_beaten = 0.0, 0, True, True
        self.heartbeats = HeartbeatMonitor(self, timeout_s=timeout_s, address="head:6379", clock=lambda: self.now)

    def internal_kv_get(self, key: bytes, namespace: bytes, timeout: float) -> bytes | None:
        if not self.answers:
            raise RuntimeError("Timed out while waiting for GCS to become available.")
        return str(Heartbeat(4711, "node", self.count)).encode() if self.has_beaten and key == b"actor" else None

    def internal_kv_del(self, key: bytes, by_prefix: bool, namespace: bytes, timeout: float) -> int:
        self.has_beaten = False
        return 1

    def silence(self, after_s: float, *, beats: bool) -> float:
        self.now += after_s
        self.count += beats
        return self.heartbeats.silent_s("actor")


def test_a_beat_that_does_not_change_is_silence() -> None:
    process = FakeProcess()
    assert process.heartbeats.tick_s == 2.5
    assert [process.silence(2.0, beats=b) for b in (True, True, False, False, False, True)] == [0, 0, 2, 4, 6, 0]
    assert process.heartbeats.pid("actor") == 4711


def test_time_in_which_the_driver_did_not_poll_does_not_count() -> None:
    process = FakeProcess()
    process.silence(0.0, beats=True)
    assert process.silence(3600.0, beats=False) == 5.0  # two ticks: the machine may have been suspended
    assert process.silence(2.0, beats=False) == 7.0


def test_a_process_without_a_first_heartbeat_is_not_silent() -> None:
    process = FakeProcess()
    process.has_beaten = False
    assert [process.silence(5.0, beats=False) for _ in range(4)] == [0, 0, 0, 0]
    assert process.heartbeats.pid("actor") is None


def test_while_the_cluster_does_not_answer_no_process_is_silent() -> None:
    process = FakeProcess()
    process.silence(0.0, beats=True)
    assert process.silence(2.0, beats=False) == 2.0
    process.answers = False
    assert [process.silence(5.0, beats=False) for _ in range(4)] == [0, 0, 0, 0]
    assert not process.heartbeats.cluster_answers()
    process.answers = True
    assert [process.silence(2.0, beats=False) for _ in range(3)] == [0, 2, 4]  # counted from the first answer
    assert process.heartbeats.cluster_answers()


def test_a_cluster_that_does_not_answer_for_long_is_lost() -> None:
    process = FakeProcess()
    process.answers = False
    process.silence(1.0, beats=False)
    assert process.silence(LOST_AFTER_S - 1, beats=False) == 0
    with pytest.raises(ClusterLost, match=r"the Ray cluster head:6379 has not answered for 25 s"):
        process.silence(1.0, beats=False)


def test_a_removed_actor_is_gone_from_the_store() -> None:
    process = FakeProcess()
    process.silence(0.0, beats=True)
    process.heartbeats.forget("actor")
    assert not process.has_beaten
    process.answers = False
    process.heartbeats.forget("actor")  # no error when the store is gone
