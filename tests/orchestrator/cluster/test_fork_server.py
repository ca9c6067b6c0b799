"""Forks of a process that has its imports done: what they have of the process that asks, and how they end."""

from __future__ import annotations

import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from orchestrator.cluster.fork_server import Preload, fork_servers, worker_command
from orchestrator.cluster.preload import VARIABLE, fork_command, serve_forks

SCRIPT = """
import os, sys
print("preloaded" if "colorsys" in sys.modules else "plain", "ray" in sys.modules)
print(os.environ["NAME"], os.getcwd(), sys.argv[1:], os.getpgid(0) == os.getpid())
sys.exit(7)
"""
SLEEP = "import os, time\nopen('pid', 'w').write(str(os.getpid()))\ntime.sleep(600)\n"


@pytest.fixture
def socket(tmp_path: Path) -> Iterator[str]:
    path = str(tmp_path / "forks")
    with fork_servers({path: Preload(["colorsys"])}):
        yield path


def start(socket: str, script: str, directory: Path, *arguments: str) -> subprocess.Popen[str]:
    (directory / "script.py").write_text(script)
    command = [*shlex.split(worker_command(socket)), "-u", str(directory / "script.py"), *arguments]
    environment = {**os.environ, "NAME": "of the caller"}
    return subprocess.Popen(command, cwd=directory, env=environment, stdout=subprocess.PIPE, text=True)


def eventually(condition: Callable[[], bool]) -> bool:
    until = time.monotonic() + 20
    while not condition():
        if time.monotonic() > until:
            return False
        time.sleep(0.01)
    return True


def sleeping(socket: str, directory: Path) -> tuple[subprocess.Popen[str], int]:
    """Return a process that waits for a sleeping fork, and the process id of the fork."""
    process = start(socket, SLEEP, directory)
    file = directory / "pid"
    assert eventually(lambda: file.exists() and file.read_text() != "")
    return process, int(file.read_text())


def is_gone(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().split()[2] == "Z"
    except FileNotFoundError:
        return True


def test_a_fork_has_the_modules_of_the_server_and_the_rest_of_its_caller(socket: str, tmp_path: Path) -> None:
    process = start(socket, SCRIPT, tmp_path, "a", "b")
    output, _ = process.communicate(timeout=60)
    assert output.splitlines() == ["preloaded False", f"of the caller {tmp_path} ['a', 'b'] True"]
    assert process.returncode == 7


def test_a_fork_is_killed_with_its_caller(socket: str, tmp_path: Path) -> None:
    process, pid = sleeping(socket, tmp_path)
    process.kill()
    process.communicate()
    assert eventually(lambda: is_gone(pid))


def test_a_signal_that_kills_a_fork_is_reported(socket: str, tmp_path: Path) -> None:
    process, pid = sleeping(socket, tmp_path)
    os.killpg(pid, signal.SIGKILL)
    process.communicate(timeout=60)
    assert process.returncode == 128 + signal.SIGKILL
    second = start(socket, SCRIPT, tmp_path)  # the server was in another process group
    assert second.communicate(timeout=60)[0].startswith("preloaded")


def test_the_end_of_the_server_ends_its_forks(tmp_path: Path) -> None:
    with fork_servers({str(tmp_path / "forks"): Preload()}):
        process, pid = sleeping(str(tmp_path / "forks"), tmp_path)
    process.communicate(timeout=60)
    assert is_gone(pid)
    assert not (tmp_path / "forks").exists()


def test_without_a_server_a_plain_interpreter_runs_the_script(tmp_path: Path) -> None:
    process = start(str(tmp_path / "nowhere"), SCRIPT, tmp_path, "a")
    output, _ = process.communicate(timeout=60)
    assert output.splitlines() == ["plain False", f"of the caller {tmp_path} ['a'] False"]
    assert process.returncode == 7


@pytest.mark.parametrize("position", [0, 1])
def test_modules_that_cannot_be_imported_disable_only_the_preload(tmp_path: Path, position: int) -> None:
    preloads = [Preload(["colorsys"]), Preload(["colorsys"])]
    preloads[position] = Preload(["no_such_module"])
    paths = [str(tmp_path / "first"), str(tmp_path / "second")]

    def outputs() -> list[str]:
        with fork_servers(dict(zip(paths, preloads, strict=True))):
            return [start(path, SCRIPT, tmp_path).communicate(timeout=60)[0].split()[0] for path in paths]

    with pytest.warns(RuntimeWarning, match="a fork server ended early, with status 1"):
        kinds = outputs()
    assert kinds == ["plain" if index == position else "preloaded" for index in range(2)]


def test_servers_share_what_they_import_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "common.py").write_text("import os\npid, shared = os.getpid(), os.environ['SHARED']\n")
    (tmp_path / "own.py").write_text("import os\nname, shared = os.environ['NAME'], os.environ['SHARED']\n")
    monkeypatch.syspath_prepend(tmp_path)
    script = "import common, own\nprint(common.pid, common.shared, own.name, own.shared)"
    paths = {str(tmp_path / name): Preload(["own"], {"NAME": name}) for name in ("first", "second")}
    with fork_servers(paths, Preload(["common"], {"SHARED": "yes"})) as last:
        found = [start(path, script, tmp_path).communicate(timeout=60)[0].split() for path in paths]
    assert found == [[str(last), "yes", name, "yes"] for name in ("first", "second")]


def test_garbage_collection_in_a_fork_skips_shared_objects(socket: str, tmp_path: Path) -> None:
    script = "import gc\nprint(gc.isenabled(), gc.get_freeze_count() > len(gc.get_objects()))"
    assert start(socket, script, tmp_path).communicate(timeout=60)[0].split() == ["True", "True"]


def test_servers_are_found_by_kind_and_shared_with_children(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(VARIABLE, raising=False)
    assert fork_command("torch") is None
    with serve_forks({"torch": Preload(["colorsys"])}):
        command = fork_command("torch")
        assert command is not None
        assert command.startswith(sys.executable)
        assert fork_command("vllm") is None
        with serve_forks({"vllm": Preload()}):  # those of the process around it serve
            assert fork_command("vllm") is None
    assert fork_command("torch") is None
    assert VARIABLE not in os.environ
