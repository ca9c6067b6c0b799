"""Two machines, simulated by mount namespaces: a Ray head, and a machine whose `alone/` is another directory.

They see the same `shared/`, and everything outside their root.
"""

from __future__ import annotations

import os
import secrets
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest
from job_cluster import free_port
from processes import eventually

SECOND = "second-machine"  # host name in the namespace of the second machine
ISOLATED = ("unshare", "--mount", "--uts", "--fork", "--kill-child", "--propagation", "private")


def _may_mount() -> bool:
    """Return whether this process may create mount namespaces and mount a file system in one."""
    if shutil.which(ISOLATED[0]) is None:
        return False
    mount = "mount -t tmpfs none /mnt && hostname a"
    return subprocess.run([*ISOLATED, "sh", "-c", mount], capture_output=True, timeout=10, check=False).returncode == 0


needs_namespaces = pytest.mark.skipif(
    not _may_mount(), reason="needs unshare (util-linux) and root, for mount namespaces"
)


@dataclass(frozen=True, kw_only=True)
class Machines:
    """Running pair of machines."""

    root: Path  # holds `alone/` and `shared/`
    second: Path  # the same as the second machine sees it
    variables: Mapping[str, str]  # with which a driver on the first machine finds the cluster

    @classmethod
    @contextmanager
    def open(
        cls, root: Path, *, cpus: tuple[int, int] = (1, 4), own: Sequence[Mapping[str, str]] = ({}, {})
    ) -> Iterator[Machines]:
        """Start the machines in an empty directory. `cpus`, `own`: cores and variables of each."""
        for name in ("alone", "shared"):
            (root / name).mkdir()
        token, temporary = root / "token", f"/tmp/rs{os.getpid()}-{secrets.token_hex(2)}"
        token.write_text(secrets.token_hex(32))
        token.chmod(0o600)
        variables = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(token), "RAY_USAGE_STATS_ENABLED": "0"}
        environment = {k: v for k, v in os.environ.items() if not k.startswith(("RAY_", "AWS_"))} | variables
        address, ray = f"127.0.0.1:{free_port()}", str(Path(sys.executable).with_name("ray"))
        start = [ray, "start", "--block", "--node-ip-address=127.0.0.1", f"--object-store-memory={100 * 2**20}"]
        head = [*start, "--head", f"--port={address.rpartition(':')[2]}", "--include-dashboard=false"]
        head += [f"--temp-dir={temporary}", f"--num-cpus={cpus[0]}"]
        mount = f'mount -t tmpfs none "{root}/alone" && hostname {SECOND} && exec "$@"'
        second = [*ISOLATED, "sh", "-c", mount, "sh", *start, f"--address={address}", f"--num-cpus={cpus[1]}"]
        processes: list[subprocess.Popen[bytes]] = []
        with (root / "log").open("wb") as log:
            try:
                for command, more in zip((head, second), own, strict=True):
                    process = subprocess.Popen(
                        command, env={**environment, **more}, stdout=log, stderr=log, start_new_session=True
                    )
                    processes.append(process)
                    _wait_for(process, root / "log", len(processes))
                seen = Path(f"/proc/{processes[1].pid}/root{root}")
                yield cls(root=root, second=seen, variables={**variables, "RAY_ADDRESS": address})
            finally:
                _end(processes)
                shutil.rmtree(temporary, ignore_errors=True)


def _wait_for(process: subprocess.Popen[bytes], log: Path, number: int) -> None:
    """Wait until so many machines have said that they run, the last one being this process."""
    up = eventually(
        lambda: log.read_text().count("Ray runtime started") >= number or process.poll() is not None, within_s=60
    )
    assert up, log.read_text()
    assert process.poll() is None, log.read_text()


def _end(processes: list[subprocess.Popen[bytes]]) -> None:
    for process in reversed(processes):
        family = psutil.Process(process.pid).children(recursive=True) if process.poll() is None else []
        for one in family:
            with suppress(psutil.NoSuchProcess):
                one.kill()
        with suppress(ProcessLookupError):
            os.kill(process.pid, signal.SIGKILL)
        process.wait(30)
        psutil.wait_procs(family, timeout=30)
