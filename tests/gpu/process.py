"""Checks in processes of their own: memory that one leaves behind is not counted to the next.

A check is a function `(device, **settings) -> Iterator[Figure]` in a file of this directory, which ends with

    if __name__ == "__main__":
        process.main(globals())
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from gpu.figures import Figure, append, read

HERE = Path(__file__).parent
TIMEOUT_S = 540.0


def run(script: str, check: str, device: str, keep: Path | None = None, **settings: Any) -> list[Figure]:
    """Run a check and return its figures. `keep`: file to which they are appended, those before an error as well.

    Raises:
        AssertionError: the process failed; the message is the end of its output.
    """
    with tempfile.TemporaryDirectory(prefix="rlhf-gpu-check-") as directory:
        file = Path(directory) / "figures.jsonl"
        done = subprocess.run(
            [sys.executable, str(HERE / script), check, device, json.dumps(settings), str(file)],
            env=environment(device),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=TIMEOUT_S,
        )
        figures = read(file) if file.is_file() else []
        if keep is not None:
            append(keep, check, figures)
        assert done.returncode == 0, f"{script} {check} failed:\n{done.stdout[-4000:]}"
        return figures


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def environment(device: str) -> dict[str, str]:
    paths = os.pathsep.join([str(HERE.parent), str(HERE.parent.parent)])
    threads = "1" if device == "cpu" else str(os.cpu_count() or 1)
    # The interpreter's directory: DeepSpeed finds ninja there.
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    chosen = {"PYTHONPATH": paths, "PATH": path, "DS_ACCELERATOR": device, "OMP_NUM_THREADS": threads}
    return {**os.environ, **chosen, "PYTHONWARNINGS": "ignore", "HF_HUB_OFFLINE": "1"}


def main(checks: Mapping[str, Any]) -> None:
    """Run the check that the command line names, and write each figure as soon as it is known."""
    name, device, settings, file = sys.argv[1:5]
    for figure in checks[name](device, **json.loads(settings)):
        append(Path(file), name, [figure])
        print(figure, flush=True)
