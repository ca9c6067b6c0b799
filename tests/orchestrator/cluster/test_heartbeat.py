"""Who counts as dead, by a clock that the test turns."""

from __future__ import annotations

import pytest

from orchestrator.cluster.heartbeat import LOST_AFTER_S, HeartbeatMonitor
from orchestrator.cluster.ray_host import Heartbeat
from orchestrator.errors import ClusterLost


class Ward:
    """One process and the store it beats into, or would if the store answered."""

    def __init__(self, timeout_s: float = 10.0) -> None:
        self.now, self.count, self.answers, self.began = 0.0, 0, True, True
        self.heartbeats = HeartbeatMonitor(self, timeout_s=timeout_s, address="head:6379", clock=lambda: self.now)

    def internal_kv_get(self, key: bytes, namespace: bytes, timeout: float) -> bytes | None:
        if not self.answers:
            raise RuntimeError("Timed out while waiting for GCS to become available.")
        return str(Heartbeat(4711, "node", self.count)).encode() if self.began and key == b"actor" else None

    def internal_kv_del(self, key: bytes, by_prefix: bool, namespace: bytes, timeout: float) -> int:
        self.began = False
        return 1

    def look(self, after_s: float, *, beats: bool) -> float:
        self.now += after_s
        self.count += beats
        return self.heartbeats.silent_s("actor")


def test_a_beat_that_does_not_change_is_silence() -> None:
    ward = Ward()
    assert ward.heartbeats.tick_s == 2.5
    assert [ward.look(2.0, beats=b) for b in (True, True, False, False, False, True)] == [0, 0, 2, 4, 6, 0]
    assert ward.heartbeats.pid("actor") == 4711


def test_time_in_which_nobody_looked_does_not_count_against_a_process() -> None:
    ward = Ward()
    ward.look(0.0, beats=True)
    assert ward.look(3600.0, beats=False) == 5.0  # two ticks: the whole machine may have slept
    assert ward.look(2.0, beats=False) == 7.0


def test_a_process_that_has_not_begun_to_beat_is_not_silent() -> None:
    ward = Ward()
    ward.began = False
    assert [ward.look(5.0, beats=False) for _ in range(4)] == [0, 0, 0, 0]
    assert ward.heartbeats.pid("actor") is None


def test_a_cluster_that_does_not_answer_for_a_while_condemns_nobody() -> None:
    ward = Ward()
    ward.look(0.0, beats=True)
    assert ward.look(2.0, beats=False) == 2.0
    ward.answers = False
    assert [ward.look(5.0, beats=False) for _ in range(4)] == [0, 0, 0, 0]
    assert not ward.heartbeats.ask()
    ward.answers = True
    assert [ward.look(2.0, beats=False) for _ in range(3)] == [0, 2, 4]  # as if it were seen for the first time
    assert ward.heartbeats.ask()


def test_a_cluster_that_does_not_answer_for_long_is_lost() -> None:
    ward = Ward()
    ward.answers = False
    ward.look(1.0, beats=False)
    assert ward.look(LOST_AFTER_S - 1, beats=False) == 0
    with pytest.raises(ClusterLost, match=r"the Ray cluster head:6379 has not answered for 25 s"):
        ward.look(1.0, beats=False)


def test_what_is_forgotten_is_gone_from_the_store() -> None:
    ward = Ward()
    ward.look(0.0, beats=True)
    ward.heartbeats.forget("actor")
    assert not ward.began
    ward.answers = False
    ward.heartbeats.forget("actor")  # and when the store is gone, nobody minds
