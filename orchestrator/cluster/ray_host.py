"""The actor process: a host that holds one worker, calls its methods and sends heartbeats."""

from __future__ import annotations

import os
import socket
import sys
import threading
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any

import ray
from ray.experimental.internal_kv import _internal_kv_put

from orchestrator.errors import redact
from workers import progress
from workers.files import mirror

NAMESPACE = b"rlhf-heartbeats"


@dataclass(frozen=True, slots=True)
class Slot:
    """Placeholder in a call's arguments for the i-th reference that Ray resolves."""

    index: int


@dataclass(frozen=True, slots=True)
class Heartbeat:
    """Heartbeat of an actor's process, sent from before its worker starts.

    Example: `Heartbeat(pid=4711, node="3f…", count=12, calls=3, progress=40)`: the process executes its second call. A
    call counts when it begins and when it ends, so the number of calls is odd while one is executed.
    """

    pid: int
    node: str
    count: int
    calls: int = 0
    progress: int = 0  # pieces of work done (`workers.progress`)

    def __str__(self) -> str:
        return f"{self.pid} {self.node} {self.count} {self.calls} {self.progress}"

    @classmethod
    def read(cls, text: bytes) -> Heartbeat:
        pid, node, *counts = text.decode().split()
        return cls(int(pid), node, *map(int, counts))

    @property
    def is_busy(self) -> bool:
        return self.calls % 2 == 1


class Host:
    """Actor class: it holds one worker and calls its methods.

    Methods run on the main thread, because libraries may use signals there. Ray then answers no other call at the same
    time, so heartbeats come from a thread of our own, which writes to the cluster's key-value store. A process that is
    stopped or frozen does not write, even if Ray lists it as alive.
    """

    def __init__(self, role: str, rank: int, log_file: str | None, beat_s: float) -> None:
        self._role, self._rank = role, rank
        context = ray.get_runtime_context()
        self._actor = context.get_actor_id()
        if log_file is not None:
            Path(log_file).parent.mkdir(parents=True, exist_ok=True)
            descriptor = os.open(log_file, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
            os.dup2(descriptor, 1)
            os.dup2(descriptor, 2)
            os.close(descriptor)
        self._calls = 0
        node = context.get_node_id()
        threading.Thread(target=self._send_heartbeats, args=(node, beat_s), daemon=True).start()

    def meeting_point(self) -> tuple[str, int]:
        with socket.socket() as probe:
            address = ray.util.get_node_ip_address()
            probe.bind((address, 0))
            return address, int(probe.getsockname()[1])

    def start(self, factory: Callable[..., Any], arguments: Mapping[str, Any]) -> None:
        self._worker = self._guarded(_start, (factory, arguments), {})

    @ray.method(num_returns=2)  # type: ignore[untyped-decorator]
    def call(self, name: str, args: Sequence[Any], kwargs: Mapping[str, Any], *resolved: Any) -> tuple[Any, None]:
        """Return the result and a receipt. Fetching the receipt tells how the call ended without moving the result."""
        filled = [_fill(a, resolved) for a in args]
        self._calls += 1
        try:
            return self._guarded(
                getattr(self._worker, name), filled, {k: _fill(v, resolved) for k, v in kwargs.items()}
            ), None
        finally:
            self._calls += 1

    def _guarded(self, function: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
        try:
            return function(*args, **kwargs)
        except Exception as error:
            text, kind = redact(traceback.format_exc()), type(error).__name__
            print(text, file=sys.stderr, flush=True)  # the actor's own log
            raise Failure(self._role, self._rank, self._actor, kind, text, os.getpid()) from None

    def _send_heartbeats(self, node: str, every_s: float) -> None:
        for beat in count():
            state = Heartbeat(os.getpid(), node, beat, self._calls, progress.count())
            with suppress(Exception):  # the store may answer again later
                _internal_kv_put(self._actor, str(state), overwrite=True, namespace=NAMESPACE)
            time.sleep(every_s)


class Failure(Exception):
    """A worker's exception as text: its class may not exist, or not unpickle, in the driver.

    It names the worker, because it also fails every call that waits for the result.
    """

    def __init__(self, role: str, rank: int, actor: str, kind: str, traceback: str, pid: int) -> None:
        super().__init__(role, rank, actor, kind, traceback, pid)
        self.role, self.rank, self.actor, self.kind = role, rank, actor, kind
        self.traceback, self.pid = traceback, pid


def _start(factory: Callable[..., Any], arguments: Mapping[str, Any]) -> Any:
    mirror.require_models(arguments)
    return factory(**arguments)


def _fill(argument: Any, resolved: Sequence[Any]) -> Any:
    if isinstance(argument, Slot):
        return resolved[argument.index]
    if isinstance(argument, list | tuple):
        return type(argument)(_fill(a, resolved) for a in argument)
    return argument
