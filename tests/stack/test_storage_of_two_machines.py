"""Two machines, simulated by mount namespaces: ranks on both, and a directory that only one of them sees."""

from __future__ import annotations

import json
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path

import psutil
import pytest
from attempts import Run
from processes import Command, eventually

from orchestrator.rundir.manifest import verify

SECOND = "second-machine"  # host name in the namespace of the second machine
ISOLATED = ("unshare", "--mount", "--uts", "--fork", "--kill-child", "--propagation", "private")


def _may_mount() -> bool:
    """Return whether this process may create mount namespaces and mount a file system in one."""
    if shutil.which(ISOLATED[0]) is None:
        return False
    mount = "mount -t tmpfs none /mnt && hostname a"
    return subprocess.run([*ISOLATED, "sh", "-c", mount], capture_output=True, timeout=10, check=False).returncode == 0


pytestmark = [
    pytest.mark.stack,
    pytest.mark.skipif(not _may_mount(), reason="needs unshare (util-linux) and root, for mount namespaces"),
]


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


@pytest.fixture(scope="module")
def machines(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, Mapping[str, str]]]:
    """Start a head with room for one rank, and a second machine whose `alone/` is another directory than the head's.

    Yield the directory that holds `alone/` and `shared/`, and the variables with which a driver finds the cluster.
    """
    root = tmp_path_factory.mktemp("machines")
    for name in ("alone", "shared"):
        (root / name).mkdir()
    token, temporary = root / "token", f"/tmp/rs{os.getpid()}"
    token.write_text(secrets.token_hex(32))
    token.chmod(0o600)
    variables = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(token), "RAY_USAGE_STATS_ENABLED": "0"}
    environment = {k: v for k, v in os.environ.items() if not k.startswith("RAY_")} | variables
    address, ray = f"127.0.0.1:{free_port()}", str(Path(sys.executable).with_name("ray"))
    start = [ray, "start", "--block", "--node-ip-address=127.0.0.1", f"--object-store-memory={100 * 2**20}"]
    head = [*start, "--head", f"--port={address.rpartition(':')[2]}", "--num-cpus=1", "--include-dashboard=false"]
    head.append(f"--temp-dir={temporary}")
    mount = f'mount -t tmpfs none "{root}/alone" && hostname {SECOND} && exec "$@"'
    second = [*ISOLATED, "sh", "-c", mount, "sh", *start, f"--address={address}", "--num-cpus=4"]
    processes: list[subprocess.Popen[bytes]] = []
    with (root / "log").open("wb") as log:
        try:
            for command in (head, second):
                process = subprocess.Popen(command, env=environment, stdout=log, stderr=log, start_new_session=True)
                processes.append(process)
                done = len(processes)
                up = eventually(lambda n=done: _started(root / "log") >= n or processes[-1].poll() is not None, 60)  # type: ignore[misc]
                assert up, (root / "log").read_text()
                assert process.poll() is None, (root / "log").read_text()
            yield root, {**variables, "RAY_ADDRESS": address}
        finally:
            _end(processes)
            shutil.rmtree(temporary, ignore_errors=True)


def _started(log: Path) -> int:
    """Return how many machines have said that they run."""
    return log.read_text().count("Ray runtime started")


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


def run(machines: tuple[Path, Mapping[str, str]], family: Path, place: str) -> tuple[int, str, Run]:
    """Run a recipe of two ranks with its output in a directory of the machines; return exit code, output and run."""
    root, variables = machines
    recipe = Path(__file__).parent / "recipes" / "base.yaml"
    overrides = [f"output_dir={root / place}", "algorithm.max_steps=1", "checkpoint.every=1"]
    with Command("run", str(recipe), *overrides, cwd=family, variables=variables) as command:
        return command.exit_code(), command.output, Run(root / place / "base")


def test_a5_a_directory_that_one_machine_does_not_see_is_refused_before_the_first_step(
    machines: tuple[Path, Mapping[str, str]], qwen2: Path
) -> None:
    code, output, found = run(machines, qwen2, "alone")
    assert code == 2, output
    message = f"on {SECOND} do not see {found.path}: output_dir must be on storage that every node sees"
    assert message in output
    assert any(f"policy rank {rank}" in output.split(message)[0].splitlines()[-1] for rank in (0, 1)), output
    assert (found.exit["cause"], found.exit["exit_code"]) == ("bad_input", 2)
    assert [fact for fact in found.facts if not fact.startswith(("ATTEMPT", "PLACED"))] == [], "nothing was trained"
    assert list((found.path / "checkpoints").iterdir()) == []
    assert not (found.path / "model").exists()


def test_ranks_on_two_machines_that_share_it_write_one_checkpoint(
    machines: tuple[Path, Mapping[str, str]], qwen2: Path
) -> None:
    code, output, found = run(machines, qwen2, "shared")
    assert code == 0, output
    checkpoint = found.path / "checkpoints" / "step-1"
    files = json.loads((checkpoint / "manifest.json").read_text())["files"]
    assert {file.get("rank") for file in files.values()} == {0, 1, None}
    assert verify(checkpoint) == verify(found.path / "model") == ""
    assert (found.path / "model" / "model.safetensors").is_file()
