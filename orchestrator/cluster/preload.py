"""Fork servers of this machine: one for each kind of worker, by the modules that it imports."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from orchestrator.cluster.fork_server import NOTHING, Preload, fork_servers, worker_command

VARIABLE = "RLHF_FORK_SERVERS"
"""Directory of the sockets: set for the processes that share them, such as the runs of a comparison."""


@contextmanager
def serve_forks(preloads: Mapping[str, Preload], shared: Preload = NOTHING) -> Iterator[None]:
    """Serve forks for every kind of worker in this process and its children, unless somebody serves them already.

    Modules in `shared` are imported once, for all kinds.
    """
    if VARIABLE in os.environ:
        yield
        return
    with (
        tempfile.TemporaryDirectory(prefix="rlhf-forks-") as directory,
        fork_servers({f"{directory}/{kind}": preload for kind, preload in preloads.items()}, shared),
    ):
        os.environ[VARIABLE] = directory
        try:
            yield
        finally:
            del os.environ[VARIABLE]


def fork_command(kind: str) -> str | None:
    """Return the command that starts a worker of a kind in a fork; None if nobody serves forks of this kind."""
    socket = Path(os.environ.get(VARIABLE, "/nowhere"), kind)
    return worker_command(str(socket)) if socket.exists() else None
