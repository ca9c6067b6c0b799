"""Start of a gang's ranks, each in a process of its own."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def run_ranks(world_size: int, settings: Mapping[str, tuple[str, Mapping[str, Any]]], out: Path) -> None:
    """Run all settings (model directory and fields) in one gang of `zero_rank.py`."""
    start_ranks("zero_rank.py", world_size, [str(out), json.dumps(settings)])


def start_ranks(script: str, world_size: int, arguments: Sequence[str]) -> None:
    """Run one process per rank, `script RANK WORLD_SIZE PORT arguments...`, and wait for them."""
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([str(HERE.parent), str(HERE.parent.parent)]),
        "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]),
        "PYTHONWARNINGS": "ignore",
    }
    port = free_port()
    ranks = [
        subprocess.Popen(
            [sys.executable, HERE / script, str(rank), str(world_size), str(port), *arguments],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in range(world_size)
    ]
    try:
        outputs = [rank.communicate(timeout=180)[0] for rank in ranks]
    finally:
        for rank in ranks:
            rank.kill()
    assert [rank.returncode for rank in ranks] == [0] * world_size, "\n".join(outputs)
