"""Run the two sides of a benchmark as processes: create TRL's environment, start workers, send requests."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
TRL_LOCK = ROOT / "requirements" / "trl.txt"


class WorkerFailed(Exception):
    """A worker ended, or a request failed; the message names it and its log."""


class Worker:
    """Process of one side that answers the requests of `protocol.py`. As a context manager it ends the process."""

    def __init__(self, name: str, python: Path, module: str, log: Path) -> None:
        self.name = name
        self._log = log
        self._requests = 0
        with log.open("w") as errors:
            self._process = subprocess.Popen(
                [python, "-m", module],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
                cwd=ROOT,
            )

    @property
    def pid(self) -> int:
        return self._process.pid

    def ask(self, cmd: str, **fields: Any) -> dict[str, Any]:
        self._requests += 1
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        with contextlib.suppress(BrokenPipeError):  # the process has ended: reading below returns an empty line
            self._process.stdin.write(json.dumps({"id": self._requests, "cmd": cmd, **fields}) + "\n")
            self._process.stdin.flush()
        line = self._process.stdout.readline()
        if not line:
            raise WorkerFailed(f"worker {self.name!r} ended during {cmd!r}, see {self._log}")
        answer: dict[str, Any] = json.loads(line)
        if not answer["ok"]:
            raise WorkerFailed(f"worker {self.name!r} failed at {cmd!r} {fields}:\n{answer['error']}")
        return answer

    def __enter__(self) -> Worker:
        return self

    def __exit__(self, failure: type[BaseException] | None, *_: object) -> None:
        """Close the input and wait; after a failure terminate, as the worker may be executing a long request."""
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.close()
        if failure:
            self._process.terminate()
        try:
            self._process.wait(timeout=60)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()


def trl_python(directory: Path) -> Path:
    """Return the interpreter of TRL's environment, which is created if it is missing or older than the lock file.

    If the configured package index has no CPU build of torch, the index in TORCH_CPU_INDEX is used as well.
    """
    stamp, digest = directory / "lock.sha256", hashlib.sha256(TRL_LOCK.read_bytes()).hexdigest()
    python = directory / "bin" / "python"
    if stamp.exists() and stamp.read_text() == digest:
        return python
    print(f"creating TRL's environment in {directory} (about 1.5 GB, once) …", flush=True)
    subprocess.run([sys.executable, "-m", "venv", "--clear", directory], check=True)
    (directory / ".gitignore").write_text("*\n")
    install: list[str | Path] = [python, "-m", "pip", "install", "--quiet", "--no-deps", "-r", TRL_LOCK]
    other_index = os.environ.get("TORCH_CPU_INDEX")
    if subprocess.run(install, check=other_index is None).returncode:
        subprocess.run([*install, "--extra-index-url", str(other_index)], check=True)
    stamp.write_text(digest)
    return python


def workload_directory(name: str, root: Path) -> Path:
    """Create a workload in its own process, so that the parent imports nothing heavy; return its directory."""
    printed = subprocess.run(
        [sys.executable, "-m", "benchmarks.workloads", name, "--root", root.resolve()],
        check=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        cwd=ROOT,
    )
    return Path(printed.stdout.decode().splitlines()[-1])  # libraries may print before it
