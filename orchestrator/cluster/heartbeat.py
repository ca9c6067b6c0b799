"""Detection of worker processes that are silent, and of a lost cluster.

Ray lists a stopped process as alive. When its head is lost, Ray ends the driver without giving it a chance to report.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Protocol

from orchestrator.cluster.ray_host import NAMESPACE, Heartbeat
from orchestrator.errors import ClusterLost

LOST_AFTER_S = 25.0
"""Time without an answer after which the cluster counts as lost. Ray itself ends the driver after 60 s, silently."""
REQUEST_S = 3.0


class Store(Protocol):
    """Key-value store of the cluster, with the signatures of Ray's client. Raises when the head does not answer."""

    def internal_kv_get(self, key: bytes, namespace: bytes, timeout: float) -> bytes | None: ...

    def internal_kv_del(self, key: bytes, by_prefix: bool, namespace: bytes, timeout: float) -> int: ...


@dataclass(frozen=True, slots=True)
class _Observation:
    """Last heartbeat seen of a process, and for how long it has not changed."""

    beat: Heartbeat
    silent_s: float
    at: float  # time of this observation


class HeartbeatMonitor:
    """Detector of silent worker processes.

    Heartbeats are counters, not timestamps: a worker is silent if its counter has not changed while the driver was
    polling. Time during which the driver itself was suspended does not count.
    """

    def __init__(
        self, store: Store, *, timeout_s: float, address: str | None, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.tick_s = min(timeout_s / 4, 2.5)  # interval of heartbeats and of polling
        self._store, self._address, self._clock = store, address, clock
        self._seen: dict[str, _Observation] = {}
        self._unanswered_since: float | None = None

    def silent_s(self, actor: str) -> float:
        """Return for how long an actor's process has sent no new heartbeat.

        0 if it has never sent one, or if the cluster does not answer now.

        Raises:
            ClusterLost: the cluster has not answered for LOST_AFTER_S.
        """
        beat, now = self._read(actor), self._clock()
        if beat is None:
            return 0.0
        last = self._seen.get(actor)
        silent_s = 0.0
        if last is not None and last.beat == beat:
            silent_s = last.silent_s + min(now - last.at, 2 * self.tick_s)
        self._seen[actor] = _Observation(beat, silent_s, now)
        return silent_s

    def cluster_answers(self) -> bool:
        """Return whether the cluster answers now."""
        with suppress(ClusterLost):
            self._read("")
        return self._unanswered_since is None

    def pid(self, actor: str) -> int | None:
        """Return the process id of an actor; None before its first heartbeat. Raise ClusterLost like `silent_s`."""
        beat = self._read(actor)
        return None if beat is None else beat.pid

    def forget(self, actor: str) -> None:
        """Remove an actor that has ended."""
        self._seen.pop(actor, None)
        with suppress(Exception):  # the cluster may have gone since
            self._store.internal_kv_del(actor.encode(), False, NAMESPACE, REQUEST_S)

    def _read(self, actor: str) -> Heartbeat | None:
        try:
            text = self._store.internal_kv_get(actor.encode(), NAMESPACE, REQUEST_S)
        except Exception:
            self._note_no_answer()
            return None
        self._unanswered_since = None
        return Heartbeat.read(text) if text else None

    def _note_no_answer(self) -> None:
        now = self._clock()
        self._seen.clear()  # workers could not write heartbeats either
        if self._unanswered_since is None:
            self._unanswered_since = now
        elif now - self._unanswered_since >= LOST_AFTER_S:
            raise ClusterLost(now - self._unanswered_since, address=self._address)
