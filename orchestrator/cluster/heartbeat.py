"""Detection of worker processes that are silent or make no progress, and of a lost cluster.

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
class Observation:
    """Last heartbeat seen of a process, and for how long parts of it have not changed while the driver was polling."""

    beat: Heartbeat
    at: float  # time of this observation
    silent_s: float = 0.0  # without a new heartbeat
    stalled_s: float = 0.0  # without progress: with the same calls and pieces of work


class HeartbeatMonitor:
    """Detector of worker processes that are silent or make no progress.

    Heartbeats are counters, not timestamps: a worker is silent if its counter has not changed while the driver was
    polling, and it makes no progress if the heartbeats go on but the work does not. Time during which the driver itself
    was suspended does not count.
    """

    def __init__(
        self, store: Store, *, timeout_s: float, address: str | None, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.tick_s = min(timeout_s / 4, 2.5)  # interval of heartbeats and of polling
        self._store, self._address, self._clock = store, address, clock
        self._seen: dict[str, Observation] = {}
        self._unanswered_since: float | None = None

    def observe(self, actor: str) -> Observation | None:
        """Read the heartbeat of an actor's process.

        None if it has never sent one, or if the cluster does not answer now.

        Raises:
            ClusterLost: the cluster has not answered for LOST_AFTER_S.
        """
        beat, now = self._read(actor), self._clock()
        if beat is None:
            return None
        last = self._seen.get(actor)
        seen = Observation(beat, now)
        if last is not None and (last.beat.calls, last.beat.progress) == (beat.calls, beat.progress):
            polled_s = min(now - last.at, 2 * self.tick_s)
            silent_s = last.silent_s + polled_s if last.beat == beat else 0.0
            seen = Observation(beat, now, silent_s=silent_s, stalled_s=last.stalled_s + polled_s)
        self._seen[actor] = seen
        return seen

    def cluster_answers(self) -> bool:
        """Return whether the cluster answers now."""
        with suppress(ClusterLost):
            self._read("")
        return self._unanswered_since is None

    def pid(self, actor: str) -> int | None:
        """Return the process id of an actor; None before its first heartbeat. Raise ClusterLost like `observe`."""
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
