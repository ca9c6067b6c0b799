"""Cluster of one node with a dashboard and token authentication, for tests of jobs."""

from __future__ import annotations

import os
import random
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil

from orchestrator.cluster.job_server import Server
from orchestrator.cluster.ray_jobs import Job, Jobs
from orchestrator.errors import ClusterError

STARTED = "Ray runtime started"  # printed when the node has joined; the dashboard answers before


PORTS = range(20_000, 32_000)  # above those of Ray's workers, below those that the system gives to anybody


def free_port() -> int:
    """Return a port that is free on every address and that the system gives to no other process meanwhile."""
    while True:
        port = random.choice(PORTS)
        with socket.socket() as found, suppress(OSError):
            found.bind(("", port))
            return port


@contextmanager
def job_cluster(home: Path, *, num_cpus: int = 1) -> Iterator[tuple[str, Path]]:
    """Start a one-node cluster with a HOME of its own, and yield the address of its dashboard and its token file."""
    token = home / "token"
    token.write_text("a" * 64)
    token.chmod(0o600)
    port, sockets = free_port(), tempfile.mkdtemp(prefix="r", dir="/tmp")  # short: sockets have paths of 107 bytes
    command = [Path(sys.executable).with_name("ray"), "start", "--head", "--block", "--disable-usage-stats"]
    command += ["--node-ip-address=127.0.0.1", f"--port={free_port()}", f"--temp-dir={sockets}"]
    command += [f"--num-cpus={num_cpus}", "--dashboard-host=127.0.0.1", f"--dashboard-port={port}"]
    command += [f"--ray-client-server-port={free_port()}", f"--dashboard-agent-listen-port={free_port()}"]
    command += [f"--object-store-memory={80 * 2**20}"]
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"  # where jobs find `rlhf`
    variables = {"HOME": str(home), "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(token), "PATH": path}
    variables["PYTHONUNBUFFERED"] = "1"
    environment = {k: v for k, v in os.environ.items() if not k.startswith("RAY_")} | variables
    with open(home / "log", "w") as log:
        head = subprocess.Popen(command, env=environment, stdout=log, stderr=log, start_new_session=True)
    try:
        server = Server.at(f"127.0.0.1:{port}", token_file=token)
        deadline = time.monotonic() + 120
        while not (STARTED in (home / "log").read_text() and _answers(server)):
            assert head.poll() is None, (home / "log").read_text()
            assert time.monotonic() < deadline, (home / "log").read_text()
            time.sleep(0.5)
        yield f"127.0.0.1:{port}", token
    finally:
        family = psutil.Process(head.pid).children(recursive=True)
        for process in (head, *family):
            with suppress(psutil.NoSuchProcess):
                process.kill()
        head.wait(30)
        psutil.wait_procs(family, timeout=30)
        shutil.rmtree(sockets, ignore_errors=True)


def _answers(server: Server) -> bool:
    try:
        server.check()
    except ClusterError:
        return False
    return True


def finished(jobs: Jobs, id: str, within_s: float = 60) -> Job:
    deadline = time.monotonic() + within_s
    while not (job := jobs.get(id)).is_finished:
        assert time.monotonic() < deadline, (job, jobs.logs(id))
        time.sleep(0.2)
    return job
