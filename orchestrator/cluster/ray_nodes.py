"""Command that waits until the nodes of a Ray cluster have joined it; scripts that start a cluster call it.

    python -m orchestrator.cluster.ray_nodes --within 300 n1 n2 n3

Exit code: 0 if all are there, else 3. The nodes that are missing are named.
"""

from __future__ import annotations

import argparse
import logging
import os
import socket
import sys
import time
from collections.abc import Callable, Collection, Sequence

import ray

from orchestrator.errors import ClusterError

POLL_S = 1.0
CONNECT_S = 5.0  # for a connection to a node; one that has lost its power does not answer at all


def missing(expected: Collection[str], alive: Callable[[], Collection[str]], *, within_s: float) -> list[str]:
    """Return the nodes that are not alive after `within_s` seconds, or as soon as none is missing."""
    until = time.monotonic() + within_s
    while (left := sorted(set(expected) - set(alive()))) and time.monotonic() < until:
        time.sleep(POLL_S)
    return left


def alive_nodes() -> set[str]:
    """Return the names of the nodes that answer. Ray itself notices a lost node only after some time."""
    return {
        node["NodeName"]
        for node in ray.nodes()
        if node["Alive"] and _answers(node["NodeManagerAddress"], node["NodeManagerPort"])
    }


def _answers(address: str, port: int) -> bool:
    try:
        socket.create_connection((address, port), CONNECT_S).close()
    except OSError:
        return False
    return True


def main(arguments: Sequence[str] | None = None) -> int:
    """Wait for the nodes of the cluster at RAY_ADDRESS and return the exit code."""
    parser = argparse.ArgumentParser(description="Wait until the nodes of a Ray cluster have joined it.")
    parser.add_argument("--within", type=float, default=300.0, metavar="SECONDS", help="time limit")
    parser.add_argument("nodes", nargs="+", metavar="NODE", help="name of a node, as given to ray start --node-name")
    given = parser.parse_args(arguments)
    ray.init(address=os.environ.get("RAY_ADDRESS", "auto"), log_to_driver=False, logging_level=logging.ERROR)
    left = missing(given.nodes, alive_nodes, within_s=given.within)
    if left:
        there = f"{len(given.nodes) - len(left)} of {len(given.nodes)} nodes are in the Ray cluster"
        print(f"rlhf: {there}; missing: {', '.join(left)}", file=sys.stderr)
    return ClusterError.exit_code if left else 0


if __name__ == "__main__":
    sys.exit(main())
