"""Start of a gang's ranks, each a fork of one process that has imported torch and DeepSpeed."""

from __future__ import annotations

import atexit
import json
import os
import socket
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from functools import cache
from pathlib import Path
from typing import Any

from orchestrator.cluster.fork_server import Preload, fork_servers, worker_command
from orchestrator.pipeline.environment import CPU_ENVIRONMENT
from orchestrator.pipeline.roles import PRELOADS, SHARED_PRELOAD

HERE = Path(__file__).parent
FAMILIES = ("transformers.models.qwen2.modeling_qwen2", "transformers.models.llama.modeling_llama")


@cache
def _python() -> list[str]:
    """Return the command that runs a script in a fork; the server ends with this process."""
    stack = ExitStack()
    atexit.register(stack.close)
    socket_path = f"{stack.enter_context(tempfile.TemporaryDirectory(prefix='rlhf-ranks-'))}/socket"
    preload = Preload((*PRELOADS["torch"].modules, *FAMILIES, "fakes"), {"PYTHONWARNINGS": "ignore"})
    stack.enter_context(fork_servers({socket_path: preload}, SHARED_PRELOAD))
    return worker_command(socket_path).split()


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
        **CPU_ENVIRONMENT,
        "PYTHONPATH": os.pathsep.join([str(HERE.parent), str(HERE.parent.parent)]),
        "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]),
        "PYTHONWARNINGS": "ignore",
    }
    port = free_port()
    ranks = [
        subprocess.Popen(
            [*_python(), str(HERE / script), str(rank), str(world_size), str(port), *arguments],
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
