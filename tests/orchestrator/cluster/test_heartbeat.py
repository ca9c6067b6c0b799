"""Detection of processes that are silent or make no progress, and of a lost cluster, with a clock that tests move."""

from __future__ import annotations

import pytest

from orchestrator.cluster.heartbeat import LOST_AFTER_S, HeartbeatMonitor
from orchestrator.cluster.ray_host import Heartbeat
from orchestrator.errors import ClusterLost


class FakeProcess:
    """One process and the store that it writes heartbeats to; the store may stop answering."""

    def __init__(self, timeout_s: float = 10.0) -> None:
        self.now, self.count, self.answers, self.has_beaten = 0.0, 0, True, True
        self.calls = self.progress = 0
        self.heartbeats = HeartbeatMonitor(self, timeout_s=timeout_s, address="head:6379", clock=lambda: self.now)

    def internal_kv_get(self, key: bytes, namespace: bytes, timeout: float) -> bytes | None:
        if not self.answers:
            raise RuntimeError("Timed out while waiting for GCS to become available.")
        beat = Heartbeat(4711, "node", self.count, self.calls, self.progress)
        return str(beat).encode() if self.has_beaten and key == b"actor" else None

    def internal_kv_del(self, key: bytes, by_prefix: bool, namespace: bytes, timeout: float) -> int:
        self.has_beaten = False
        return 1

    def silence(self, after_s: float, *, beats: bool) -> float:
        self.now += after_s
        self.count += beats
        seen = self.heartbeats.observe("actor")
        return 0.0 if seen is None else seen.silent_s

    def stalled_s(self, after_s: float, *, calls: int = 0, progress: int = 0) -> float:
        """Return for how long there has been no progress, `after_s` later, with another heartbeat in the meantime."""
        self.now += after_s
        self.count, self.calls, self.progress = self.count + 1, self.calls + calls, self.progress + progress
        seen = self.heartbeats.observe("actor")
        assert seen is not None
        assert seen.silent_s == 0
        return seen.stalled_s


def test_a_beat_that_does_not_change_is_silence() -> None:
    process = FakeProcess()
    assert process.heartbeats.tick_s == 2.5
    assert [process.silence(2.0, beats=b) for b in (True, True, False, False, False, True)] == [0, 0, 2, 4, 6, 0]
    assert process.heartbeats.pid("actor") == 4711


def test_heartbeats_without_a_piece_of_work_or_a_call_are_no_progress() -> None:
    process = FakeProcess()
    assert [process.stalled_s(2.0) for _ in range(3)] == [0, 2, 4]
    assert [process.stalled_s(2.0, progress=1) for _ in range(2)] == [0, 0]
    assert [process.stalled_s(2.0) for _ in range(2)] == [2, 4]
    assert [process.stalled_s(2.0, calls=1), process.stalled_s(2.0), process.stalled_s(2.0, calls=1)] == [0, 2, 0]


def test_a_silent_process_makes_no_progress_either() -> None:
    process = FakeProcess()
    process.stalled_s(2.0)
    process.stalled_s(2.0)
    process.silence(2.0, beats=False)
    seen = process.heartbeats.observe("actor")
    assert seen is not None
    assert (seen.silent_s, seen.stalled_s) == (2, 4)


def test_time_in_which_the_driver_did_not_poll_does_not_count() -> None:
    process = FakeProcess()
    process.silence(0.0, beats=True)
    assert process.silence(3600.0, beats=False) == 5.0  # two ticks: the machine may have been suspended
    assert process.silence(2.0, beats=False) == 7.0
    assert process.stalled_s(3600.0) == 12.0


def test_a_heartbeat_tells_whether_a_call_is_executed() -> None:
    beat = Heartbeat(4711, "node", 12, calls=3, progress=40)
    assert Heartbeat.read(str(beat).encode()) == beat
    assert [Heartbeat(1, "node", 0, calls=calls).is_busy for calls in range(4)] == [False, True, False, True]


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
