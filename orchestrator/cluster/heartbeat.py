"""Which processes are alive, and whether the cluster is: Ray lists a stopped process as alive, and leaves the driver no
chance to say anything when its head is lost."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Protocol

from orchestrator.cluster.ray_host import NAMESPACE, Heartbeat
from orchestrator.errors import ClusterLost

LOST_AFTER_S = 25.0
"""Without an answer the cluster is lost. Ray itself ends the driver after 60 s, without a word."""
ASK_S = 3.0


class Store(Protocol):
    """The cluster's key-value store, as Ray's client of its head has it; raises when the head does not answer."""

    def internal_kv_get(self, key: bytes, namespace: bytes, timeout: float) -> bytes | None: ...

    def internal_kv_del(self, key: bytes, by_prefix: bool, namespace: bytes, timeout: float) -> int: ...


@dataclass(frozen=True, slots=True)
class _Look:
    """What was seen of a process: its newest beat, and for how long that has been its newest."""

    beat: Heartbeat
    silent_s: float
    at: float


class HeartbeatMonitor:
    """Reads the beats of the hosts, which say nothing of time: a beat is judged by when it was last seen to change, and
    only while somebody looks. A laptop that slept, or a driver that was stopped, condemns nobody."""

    def __init__(
        self, store: Store, *, timeout_s: float, address: str | None, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.tick_s = min(timeout_s / 4, 2.5)  # how often hosts beat, and how often it is worth looking
        self._store, self._address, self._clock = store, address, clock
        self._seen: dict[str, _Look] = {}
        self._unanswered_since: float | None = None

    def silent_s(self, actor: str) -> float:
        """For how long a process has given no sign of life; 0 when it never has, or the cluster does not answer now.

        Raises:
            ClusterLost: when it has not answered for LOST_AFTER_S.
        """
        beat, now = self._beat(actor), self._clock()
        if beat is None:
            return 0.0
        last = self._seen.get(actor)
        silent_s = 0.0
        if last is not None and last.beat == beat:
            silent_s = last.silent_s + min(now - last.at, 2 * self.tick_s)
        self._seen[actor] = _Look(beat, silent_s, now)
        return silent_s

    def ask(self) -> bool:
        """Whether the cluster answers now."""
        with suppress(ClusterLost):
            self._beat("")
        return self._unanswered_since is None

    def pid(self, actor: str) -> int | None:
        """None: it has not beaten yet. Raises ClusterLost."""
        beat = self._beat(actor)
        return None if beat is None else beat.pid

    def forget(self, actor: str) -> None:
        """Nobody will ask for it again."""
        self._seen.pop(actor, None)
        with suppress(Exception):  # the cluster may have gone since
            self._store.internal_kv_del(actor.encode(), False, NAMESPACE, ASK_S)

    def _beat(self, actor: str) -> Heartbeat | None:
        try:
            found = self._store.internal_kv_get(actor.encode(), NAMESPACE, ASK_S)
        except Exception:
            self._without_answer()
            return None
        self._unanswered_since = None
        return Heartbeat.read(found) if found else None

    def _without_answer(self) -> None:
        now = self._clock()
        self._seen.clear()  # no beat could be written either
        if self._unanswered_since is None:
            self._unanswered_since = now
        elif now - self._unanswered_since >= LOST_AFTER_S:
            raise ClusterLost(now - self._unanswered_since, address=self._address)
