"""Lives of a run: each in a process of its own that may be killed, until one reaches the end."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cpu_run
from injection import Disk, FakeDisk, swap

import orchestrator.driver.driver  # noqa: F401 - here, so that no fork has to
from orchestrator.config import RunConfig
from orchestrator.errors import DiskFailed, Superseded
from orchestrator.rundir.ledger import account, read_ledger

MAX_ATTEMPTS, MAX_TRIES = 3, 8


@dataclass(frozen=True)
class World:
    """A task and what its uninterrupted run came to, for one algorithm and checkpoint interval."""

    root: Path
    algorithm: str
    every: int
    expected: tuple[str, list[dict[str, Any]]]
    log: list[str]  # every operation of it on the disk
    num_bytes: int  # that it wrote
    seconds: float  # that it took

    @property
    def directory(self) -> Path:
        """Of the uninterrupted run."""
        return self.root / f"whole-{self.algorithm}-{self.every}" / "run"

    def config(self, name: str) -> RunConfig:
        within = cpu_run.EVERY_UPDATES.get(self.algorithm)
        checkpoint = {"every": self.every, "every_updates": within, "keep": 2}
        return cpu_run.config(self.root, self.root / name, self.algorithm, checkpoint=checkpoint)


def build(root: Path, algorithm: str, every: int = 1) -> World:
    if not (root / "model").is_dir():
        cpu_run.write_task(root)
    draft = World(root, algorithm, every, ("", []), [], 0, 0.0)
    name = f"whole-{algorithm}-{every}"
    report = root / f"{name}.log"

    def attempt(disk: Disk) -> None:
        disk.bytes_left = limit = 2**40
        cpu_run.run(draft.config(name))
        report.write_text("\n".join([str(limit - disk.bytes_left), *disk.log]))

    started = time.monotonic()
    assert live(draft.root / name, attempt) == 0
    seconds = time.monotonic() - started
    num_bytes, *log = report.read_text().splitlines()
    directory = root / name / "run"
    return World(root, algorithm, every, cpu_run.outcome(directory), log, int(num_bytes), seconds)


def live(root: Path, attempt: Callable[[Disk], None], *, killed_after_s: float | None = None) -> int:
    """One life in a fork; its exit status: 0, 1 when the disk failed it, 6 when it was superseded, 2 for any other
    error that it ended by, -9 when it was killed."""
    pid = begin(root, attempt)
    if killed_after_s is not None:
        time.sleep(killed_after_s)
        os.kill(pid, signal.SIGKILL)  # it is a zombie at least: nobody has waited for it
    return end(pid)


def begin(root: Path, attempt: Callable[[Disk], None]) -> int:
    """The process id of a life that has just begun."""
    pid = os.fork()
    if pid:
        return pid
    status = 2
    try:
        disk = Disk(root)
        with disk.watched():
            attempt(disk)
        status = 0
    except (DiskFailed, Superseded) as error:
        status = error.exit_code
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(status)


def end(pid: int) -> int:
    """Waits for a life; its exit status."""
    _, status = os.waitpid(pid, 0)
    return os.waitstatus_to_exitcode(status)


def taken_over(world: World, records: int) -> None:
    """A driver is stopped when its ledger has that many records, its lock is let go, another driver begins, and the
    first wakes up in the middle of that. Raises AssertionError when it is not fenced off, or disturbs the other one."""
    name = f"{world.algorithm}-zombie-{records}"
    directory = world.root / name / "run"

    def attempt(disk: Disk) -> None:
        cpu_run.run(world.config(name))

    def wait_for(count: int) -> None:
        until = time.monotonic() + 120
        ledger = directory / "ledger.jsonl"
        while not ledger.exists() or ledger.read_bytes().count(b"\n") < count:
            assert time.monotonic() < until, f"there were never {count} records"
            time.sleep(0.001)

    old = begin(world.root / name, attempt)
    wait_for(records)
    os.kill(old, signal.SIGSTOP)
    assert live(world.root / name, attempt) == 2, "as long as the lock holds, nobody else begins"
    (directory / "lock").unlink()  # as shared storage lets go of it, when the machine of its holder is cut off
    before = (directory / "ledger.jsonl").read_bytes().count(b"\n")
    new = begin(world.root / name, attempt)
    wait_for(before + 2)
    os.kill(old, signal.SIGCONT)
    assert end(old) == Superseded.exit_code
    assert end(new) == 0
    told = json.loads((directory / "exit.json").read_text())
    assert (told["cause"], told["attempt"]) == ("completed", 2)
    go_on(world, name)


def killed_at(world: World, operation: int, *, half: bool = False) -> int:
    """Killed once at an operation, then run to the end. Returns how many steps were done again.

    Raises:
        AssertionError: when the end is not that of the uninterrupted run.
    """

    return go_on(world, stop_at(world, operation, half=half))


def stop_at(world: World, operation: int, *, half: bool = False) -> str:
    """The name of a run that was killed there."""

    def attempt(disk: Disk) -> None:
        disk.kill_at, disk.half = operation, half
        cpu_run.run(world.config(name))

    name = f"{world.algorithm}-killed-{operation}-{half}"
    assert live(world.root / name, attempt) == -9, f"operation {operation} was not reached"
    return name


def killed_somewhere(world: World, seed: int) -> int:
    """Killed at a random moment of its time; earlier, when it had ended before: it was timed on a busier machine."""
    draw, name = random.Random(seed), f"{world.algorithm}-random-{seed}"
    for tries in range(MAX_TRIES):
        moment = draw.uniform(0, world.seconds / 2**tries)
        if live(world.root / name, lambda disk: cpu_run.run(world.config(name)), killed_after_s=moment) == -9:
            return go_on(world, name)
        shutil.rmtree(world.root / name)
    raise AssertionError(f"it ended {MAX_TRIES} times before it could be killed")


def power_cut_at(world: World, operation: int, seed: int) -> int:
    """The same, and what was not fsynced is lost."""
    name = f"{world.algorithm}-cut-{operation}-{seed}"
    survivors = world.root / f"{name}-survivors"

    def attempt(disk: Disk) -> None:
        disk.kill_at = operation
        FakeDisk(disk, survivors, seed)
        cpu_run.run(world.config(name))

    assert live(world.root / name, attempt) == -9, f"operation {operation} was not reached"
    swap(world.root / name, survivors)
    return go_on(world, name)


def full_after(world: World, num_bytes: int) -> int:
    """A disk that is full after `num_bytes`: the life ends by itself, and the next one finds room again."""

    def attempt(disk: Disk) -> None:
        disk.bytes_left = num_bytes
        cpu_run.run(world.config(name))

    name = f"{world.algorithm}-full-{num_bytes}"
    assert live(world.root / name, attempt) == 1, f"the disk was not full after {num_bytes} bytes, or worse happened"
    return go_on(world, name)


def go_on(world: World, name: str) -> int:
    """Resumes until the end; how many steps were done again."""
    directory = world.root / name / "run"
    for _ in range(MAX_ATTEMPTS):
        if live(world.root / name, lambda disk: cpu_run.run(world.config(name))) == 0:
            break
    assert cpu_run.outcome(directory) == world.expected
    found = account(read_ledger(directory / "ledger.jsonl")[0])
    assert found.lost == found.repeated == ()
    shutil.rmtree(world.root / name)
    return found.redone
