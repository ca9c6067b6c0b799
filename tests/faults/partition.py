"""A separate network for one node, connected by a link that can be cut. Creating the network namespace takes root."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from orchestrator.cluster import fork_server

NEAR, FAR = "10.213.7.1", "10.213.7.2"


@dataclass(frozen=True)
class Network:
    """Two connected addresses: NEAR in the default network, FAR alone in a network namespace."""

    name: str

    @contextmanager
    def entered(self) -> Iterator[None]:
        """Enter the far namespace: processes that this thread starts meanwhile are on the far side."""
        before, there = os.open(fork_server.NETWORK, os.O_RDONLY), os.open(f"/run/netns/{self.name}", os.O_RDONLY)
        try:
            fork_server.enter(there)
            yield
        finally:
            fork_server.enter(before)
            os.close(before)
            os.close(there)

    def cut(self) -> None:
        """Drop all packets, without an error on either side."""
        _ip("link", "set", f"{self.name}a", "down")

    def restore(self) -> None:
        _ip("link", "set", f"{self.name}a", "up")


@contextmanager
def network() -> Iterator[Network]:
    name = f"rlhf{os.getpid() % 100_000}"
    near, far = f"{name}a", f"{name}b"
    _ip("netns", "add", name)
    try:
        _ip("link", "add", near, "type", "veth", "peer", "name", far)
        _ip("link", "set", far, "netns", name)
        _ip("addr", "add", f"{NEAR}/24", "dev", near)
        _ip("link", "set", near, "up")
        _ip("-n", name, "addr", "add", f"{FAR}/24", "dev", far)
        for device in (far, "lo"):
            _ip("-n", name, "link", "set", device, "up")
        yield Network(name)
    finally:
        subprocess.run(["ip", "link", "del", near], capture_output=True, check=False)
        _ip("netns", "del", name)


def is_possible() -> bool:
    if os.geteuid() != 0 or not shutil.which("ip"):
        return False
    probe = f"rlhf{os.getpid() % 100_000}p"
    added = subprocess.run(["ip", "netns", "add", probe], capture_output=True, check=False).returncode == 0
    if added:
        _ip("netns", "del", probe)
    return added and Path(fork_server.NETWORK).exists()


def _ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True, capture_output=True)
