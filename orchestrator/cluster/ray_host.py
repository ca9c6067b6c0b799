"""What runs in every actor's process: a host that holds one worker and calls its methods."""

from __future__ import annotations

import os
import socket
import sys
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray

from orchestrator.errors import redact


@dataclass(frozen=True, slots=True)
class Slot:
    """Stands in a call's arguments for the i-th reference that Ray resolves."""

    index: int


class Host:
    """The actor process: it holds one worker and calls its methods."""

    def __init__(self, role: str, rank: int, log_file: str | None) -> None:
        self._role, self._rank = role, rank
        if log_file is not None:
            Path(log_file).parent.mkdir(parents=True, exist_ok=True)
            descriptor = os.open(log_file, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
            os.dup2(descriptor, 1)
            os.dup2(descriptor, 2)
            os.close(descriptor)

    def meeting_point(self) -> tuple[str, int]:
        with socket.socket() as probe:
            address = ray.util.get_node_ip_address()
            probe.bind((address, 0))
            return address, int(probe.getsockname()[1])

    def start(self, factory: Callable[..., Any], arguments: Mapping[str, Any]) -> None:
        self._worker = self._told(factory, (), arguments)

    def call(self, name: str, args: Sequence[Any], kwargs: Mapping[str, Any], *resolved: Any) -> Any:
        filled = [_fill(a, resolved) for a in args]
        return self._told(getattr(self._worker, name), filled, {k: _fill(v, resolved) for k, v in kwargs.items()})

    def _told(self, function: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
        try:
            return function(*args, **kwargs)
        except Exception:
            told = redact(traceback.format_exc())
            print(told, file=sys.stderr, flush=True)  # the actor's own log
            raise Failure(self._role, self._rank, told) from None


class Failure(Exception):
    """A worker's exception as text: its class may not exist, or not unpickle, where the driver runs. It says whose it
    is, because it fails every call that waits for its answer too."""

    def __init__(self, role: str, rank: int, traceback: str) -> None:
        super().__init__(role, rank, traceback)
        self.role, self.rank, self.traceback = role, rank, traceback


def _fill(argument: Any, resolved: Sequence[Any]) -> Any:
    if isinstance(argument, Slot):
        return resolved[argument.index]
    if isinstance(argument, list | tuple):
        return type(argument)(_fill(a, resolved) for a in argument)
    return argument
