"""T18: no program escapes from the sandbox, and no program forges a passed test."""

from __future__ import annotations

import os
import secrets
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psutil
import pytest
from escapes import ESCAPES, FORGERIES, Escape, Targets, run_in_sandbox, run_without_sandbox

from workers.rewards.code import Assertions, Call, Input, passes
from workers.rewards.sandbox import MAX_OUTPUT_BYTES, NoSandboxError, Sandbox

pytestmark = pytest.mark.slow

MEMORY_MIB = 256


@pytest.fixture(scope="module")
def sandbox() -> Sandbox:
    if shutil.which("bwrap") is None:
        pytest.skip("bubblewrap is not installed: apt-get install bubblewrap")
    try:
        return Sandbox(timeout_s=1.0, memory_mib=MEMORY_MIB)
    except NoSandboxError as error:
        pytest.skip(str(error))


@pytest.fixture(scope="module")
def outside(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Targets]:
    directory = tmp_path_factory.mktemp("outside")
    (directory / "secret").write_text("the secret")
    (directory / "reward.py").write_text("# the reward\n")
    name = f"rlhf-{secrets.token_hex(8)}"
    victim = subprocess.Popen(["sleep", "600"])
    with socket.create_server(("127.0.0.1", 0)) as listener, socket.socket(socket.AF_UNIX) as abstract:
        abstract.bind("\0" + name)
        abstract.listen()
        yield Targets(
            secret=str(directory / "secret"),
            reward_file=str(directory / "reward.py"),
            port=listener.getsockname()[1],
            socket=name,
            victim=victim.pid,
        )
    victim.kill()
    victim.wait()


WAITING = ("threads", "sleep for ever", "live on with closed output")  # end at the limit of wall-clock time, 7 s


def escaped_or_hung(sandbox: Sandbox, outside: Targets, escape: Escape) -> str:
    """Run an escape and return what is wrong, or nothing."""
    started = time.monotonic()
    ran = run_in_sandbox(sandbox, escape, outside)
    if b"ESCAPED" in ran.output:
        return "it escaped"
    if len(ran.output) > MAX_OUTPUT_BYTES + 2**16:
        return f"{len(ran.output)} bytes of output"
    return f"it took {seconds:.0f} s" if (seconds := time.monotonic() - started) >= 20 else ""


@pytest.mark.parametrize("escape", [e for e in ESCAPES if e.name not in WAITING], ids=lambda e: e.name)
def test_no_escape(sandbox: Sandbox, outside: Targets, escape: Escape) -> None:
    before = Path(outside.reward_file).read_bytes()
    assert escaped_or_hung(sandbox, outside, escape) == ""
    assert_untouched(outside, before)


def test_no_escape_by_waiting(sandbox: Sandbox, outside: Targets) -> None:
    before = Path(outside.reward_file).read_bytes()
    waiting = [escape for escape in ESCAPES if escape.name in WAITING]
    with ThreadPoolExecutor(len(WAITING)) as threads:
        found = dict(zip(WAITING, threads.map(lambda e: escaped_or_hung(sandbox, outside, e), waiting), strict=True))
    assert found == dict.fromkeys(WAITING, "")
    assert_untouched(outside, before)


def assert_untouched(outside: Targets, before: bytes) -> None:
    assert Path(outside.reward_file).read_bytes() == before
    assert psutil.Process(outside.victim).status() != psutil.STATUS_ZOMBIE
    assert not left_behind()


def left_behind() -> list[int]:
    """Return the process ids of sandboxes that are still running after a grace period of two seconds."""
    for _ in range(100):
        found = [p.pid for p in psutil.Process().children(recursive=True) if p.name() == "bwrap"]
        if not found:
            return []
        time.sleep(0.02)
    return found


@pytest.mark.parametrize("escape", [e for e in ESCAPES if e.control], ids=lambda e: e.name)
def test_the_same_succeeds_without_the_sandbox(outside: Targets, escape: Escape, tmp_path: Path) -> None:
    if escape.name in ("make a user namespace", "trace another process", "open a netlink socket") and os.getuid():
        pytest.skip("takes rights that this user may lack")
    before = Path(outside.reward_file).read_bytes()
    try:
        assert b"ESCAPED" in run_without_sandbox(escape, outside, tmp_path)
    finally:
        Path(outside.reward_file).write_bytes(before)


@pytest.mark.parametrize("forgery", FORGERIES, ids=str)
def test_no_forged_verdict(sandbox: Sandbox, forgery: str) -> None:
    source = FORGERIES[forgery]
    assert not passes(sandbox, source, Assertions(source="assert solve() == 1"))
    assert not passes(sandbox, source, Call(function="solve", arguments=[], expected=1))
    assert not passes(sandbox, source, Input(given="2\n", expected="4\n"))


def test_correct_programs_pass(sandbox: Sandbox) -> None:
    source = "def solve(): return 1\nif __name__ == '__main__': print(int(input()) ** 2)"
    assert passes(sandbox, source, Assertions(source="assert solve() == 1"))
    assert passes(sandbox, source, Call(function="solve", arguments=[], expected=1))
    assert passes(sandbox, source, Input(given="2\n", expected="4\n"))


def test_runs_are_isolated_from_each_other(sandbox: Sandbox) -> None:
    source = "import os\nprint(sorted(os.listdir('/tmp')))\nopen('/tmp/left', 'w').write('x')"
    assert [sandbox.run(source, {"mode": "input"}).output for _ in range(2)] == [b"[]\n"] * 2


def test_the_sandbox_has_no_more_than_documented(sandbox: Sandbox) -> None:
    source = (
        "import os, threading\nprint(sorted(os.listdir('/')), sorted(os.environ), os.getuid(), os.getpid())\n"
        "thread = threading.Thread(target=print, args=('threads work',)); thread.start(); thread.join()"
    )
    ran = sandbox.run(source, {"mode": "input"})
    room, thread = ran.output.decode().splitlines()
    assert thread == "threads work"
    assert " ['LC_CTYPE', 'PWD'] 65534 2" in room
    assert "'proc'" not in room
    assert "'etc'" not in room
