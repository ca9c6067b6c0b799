"""vLLM's own OpenAI-compatible server of a tiny model, on this machine and without a GPU."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil
from job_cluster import free_port

from workers.rollout import environment

START_S, STOP_S = 240, 30
# A random model prefers blanks between the parts of a JSON object as soon as they are allowed, and never ends them.
STRUCTURE = '{"backend": "xgrammar", "disable_any_whitespace": true}'


@contextmanager
def served(model: Path, name: str, log: Path) -> Iterator[str]:
    """Serve a model while inside the context, and yield the base URL of the API. No process is left behind."""
    port = free_port()
    options = {
        "--model": str(model),
        "--served-model-name": name,
        "--host": "127.0.0.1",
        "--port": str(port),
        "--dtype": "float32",
        "--max-num-seqs": "16",
        "--kv-cache-memory-bytes": str(64 * 2**20),
        "--structured-outputs-config": STRUCTURE,
    }
    words = [word for option in options.items() for word in option]
    own = {**environment(cuda=False), "VLLM_LOGGING_LEVEL": "WARNING", "HF_HUB_OFFLINE": "1"}
    with log.open("wb") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", "vllm.entrypoints.openai.api_server", *words, "--enforce-eager"],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            env={**os.environ, **own},
            start_new_session=True,
        )
        try:
            _wait_until_ready(process, f"http://127.0.0.1:{port}/health", log)
            yield f"http://127.0.0.1:{port}/v1"
        finally:
            _end(process)


def _wait_until_ready(process: subprocess.Popen[bytes], url: str, log: Path) -> None:
    deadline = time.monotonic() + START_S
    while time.monotonic() < deadline and process.poll() is None:
        with suppress(urllib.error.URLError, OSError), urllib.request.urlopen(url, timeout=5):
            return
        time.sleep(0.5)
    raise AssertionError(f"the server did not start:\n{log.read_text(errors='replace')[-4000:]}")


def _end(process: subprocess.Popen[bytes]) -> None:
    """End the server and its engine, which is a process of the same session."""
    process.send_signal(signal.SIGTERM)
    deadline = time.monotonic() + STOP_S
    while _members(process.pid) and time.monotonic() < deadline:
        process.poll()
        time.sleep(0.1)
    for member in _members(process.pid):
        with suppress(psutil.NoSuchProcess):
            member.kill()
    process.wait()
    psutil.wait_procs(_members(process.pid), timeout=STOP_S)
    assert not _members(process.pid)


def _members(session: int) -> list[psutil.Process]:
    """Return the processes of a session that still run."""
    found = []
    for process in psutil.process_iter():
        with suppress(psutil.Error, OSError):
            if os.getsid(process.pid) == session and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
    return found
