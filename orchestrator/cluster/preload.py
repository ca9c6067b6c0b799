"""Fork servers of this machine: one for each set of modules that its workers import."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from orchestrator.cluster.fork_server import fork_server, worker_command

VARIABLE = "RLHF_FORK_SERVERS"
"""Directory of the sockets: set for the processes that share them, such as the runs of a comparison."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Preload:
    """Modules that workers of a kind import, and the environment that must be set before."""

    modules: tuple[str, ...]
    environment: Mapping[str, str] = field(default_factory=dict)


@contextmanager
def fork_servers(preloads: Mapping[str, Preload]) -> Iterator[None]:
    """Serve forks for every kind of worker in this process and its children, unless somebody serves them already."""
    if VARIABLE in os.environ:
        yield
        return
    with tempfile.TemporaryDirectory(prefix="rlhf-forks-") as directory, ExitStack() as stack:
        for kind, preload in preloads.items():
            stack.enter_context(fork_server(f"{directory}/{kind}", preload.modules, preload.environment))
        os.environ[VARIABLE] = directory
        try:
            yield
        finally:
            del os.environ[VARIABLE]


def fork_command(kind: str) -> str | None:
    """Return the command that starts a worker of a kind in a fork; None if nobody serves forks of this kind."""
    socket = Path(os.environ.get(VARIABLE, "/nowhere"), kind)
    return worker_command(str(socket)) if socket.exists() else None
