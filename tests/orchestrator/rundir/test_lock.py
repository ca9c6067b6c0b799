"""Lock of a run directory: waiting for it, its release by a process that is killed, and a directory moved meanwhile."""

from __future__ import annotations

import fcntl
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from orchestrator.errors import BadInput, Interrupted, Superseded
from orchestrator.rundir.lock import hold, holder, job_of

HOLD = "import sys, time; from pathlib import Path; from orchestrator.rundir.lock import hold\n"
HOLD += "with hold(Path(sys.argv[1])): print('held', flush=True); time.sleep(600)"


@pytest.fixture
def lock(tmp_path: Path) -> Path:
    return tmp_path / "run" / "lock"


def test_a_driver_that_is_killed_hands_its_lock_to_the_one_that_waits(lock: Path) -> None:
    lock.parent.mkdir()
    child = subprocess.Popen([sys.executable, "-c", HOLD, str(lock)], stdout=subprocess.PIPE)
    assert child.stdout is not None
    assert child.stdout.readline() == b"held\n"
    names: list[str] = []

    def on_wait(name: str) -> None:
        names.append(name)
        child.send_signal(signal.SIGKILL)
        child.wait()
        child.stdout.close()

    with hold(lock, on_wait) as fence:
        fence()
        assert str(holder(lock)).startswith(f"process {os.getpid()} on ")
    assert len(names) == 1
    assert names[0].startswith(f"process {child.pid} on ")
    assert holder(lock) is None


def test_a_wait_for_a_lock_can_be_ended(lock: Path) -> None:
    lock.parent.mkdir()

    def stop(name: str) -> None:
        raise Interrupted("SIGTERM")

    with hold(lock):
        with pytest.raises(Interrupted), hold(lock, stop):
            pass
        with pytest.raises(BadInput, match="is in use"), hold(lock):
            pass


def test_the_lock_of_a_directory_that_was_moved_aside_is_not_taken_for_that_of_the_new_one(lock: Path) -> None:
    lock.parent.mkdir()
    holding = hold(lock)
    holding.__enter__()

    def move(name: str) -> None:
        lock.parent.rename(lock.parent.with_name("run.old-1"))
        lock.parent.mkdir()
        holding.__exit__(None, None, None)

    with hold(lock, move) as fence:
        fence()
        assert lock.exists()
        with pytest.raises(BadInput), hold(lock):
            pass


def test_a_reader_that_looks_who_holds_a_lock_keeps_no_driver_out(lock: Path) -> None:
    lock.parent.mkdir()
    lock.touch()
    looking = os.open(lock, os.O_RDONLY)
    fcntl.flock(looking, fcntl.LOCK_SH)
    reader = threading.Timer(0.2, os.close, [looking])
    reader.start()
    with hold(lock) as fence:
        fence()
    reader.join()


def test_a_driver_that_lost_its_lock_is_superseded(lock: Path) -> None:
    lock.parent.mkdir()
    with hold(lock) as fence:
        lock.write_text("process 1 on another-node\nabc")
        with pytest.raises(Superseded, match="process 1 on another-node"):
            fence()


def test_a_lock_names_the_job_of_its_holder(lock: Path) -> None:
    lock.parent.mkdir()
    assert job_of(lock) is None
    with hold(lock, job="rlhf-a-1") as fence:
        fence()
        assert job_of(lock) == "rlhf-a-1"
        assert str(holder(lock)).startswith(f"process {os.getpid()} on ")
    with hold(lock):
        assert job_of(lock) is None
