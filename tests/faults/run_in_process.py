"""Attempts of a run, each in a forked process that may be killed, until one of them reaches the end."""

from __future__ import annotations

import gc
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
import pandas as pd  # noqa: F401
import peft  # noqa: F401
import pyarrow.parquet  # noqa: F401
from injection import Disk, FakeDisk, swap

import orchestrator.driver.driver  # noqa: F401 - imported once, before the forks, as are the others without a use
from orchestrator.config import RunConfig
from orchestrator.errors import DiskFailed, Superseded
from orchestrator.rundir.ledger import account, read_ledger

MAX_ATTEMPTS, MAX_TRIES = 3, 8


@dataclass(frozen=True)
class World:
    """A task and the outcome of its uninterrupted run, for one algorithm and checkpoint interval."""

    root: Path
    algorithm: str
    every: int
    expected: tuple[str, list[dict[str, Any]]]
    log: list[str]  # every disk operation of that run
    num_bytes: int  # number of bytes that it wrote
    seconds: float  # its wall time

    @property
    def directory(self) -> Path:
        """Directory of the uninterrupted run."""
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
    assert run_attempt(draft.root / name, attempt) == 0
    seconds = time.monotonic() - started
    num_bytes, *log = report.read_text().splitlines()
    directory = root / name / "run"
    return World(root, algorithm, every, cpu_run.outcome(directory), log, int(num_bytes), seconds)


def run_attempt(root: Path, attempt: Callable[[Disk], None], *, killed_after_s: float | None = None) -> int:
    """Run one attempt in a fork and return its exit status.

    0: it returned. 1: the disk failed. 6: another driver superseded it. 2: any other error. -9: it was killed.
    """
    pid = start_attempt(root, attempt)
    if killed_after_s is not None:
        time.sleep(killed_after_s)
        os.kill(pid, signal.SIGKILL)  # the process id is still valid: nobody has waited for the process
    return wait_for_exit(pid)


def start_attempt(root: Path, attempt: Callable[[Disk], None]) -> int:
    """Fork a process that runs one attempt, and return its process id."""
    pid = os.fork()
    if pid:
        return pid
    gc.freeze()  # a collection would copy the memory of the whole test session
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


def wait_for_exit(pid: int) -> int:
    """Wait for a forked attempt and return its exit status."""
    _, status = os.waitpid(pid, 0)
    return os.waitstatus_to_exitcode(status)


def taken_over(world: World, records: int) -> None:
    """Stop a driver, let a second one take over, and wake the first while the second is running.

    The first driver is stopped when its ledger has `records` records, and its lock is then removed.

    Raises:
        AssertionError: when the first driver is not fenced off, or disturbs the second.
    """
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

    old = start_attempt(world.root / name, attempt)
    wait_for(records)
    os.kill(old, signal.SIGSTOP)
    assert run_attempt(world.root / name, attempt) == 2, "as long as the lock holds, nobody else begins"
    (directory / "lock").unlink()  # as shared storage releases it when the holder's machine is cut off
    before = (directory / "ledger.jsonl").read_bytes().count(b"\n")
    new = start_attempt(world.root / name, attempt)
    wait_for(before + 2)
    os.kill(old, signal.SIGCONT)
    assert wait_for_exit(old) == Superseded.exit_code
    assert wait_for_exit(new) == 0
    exit_report = json.loads((directory / "exit.json").read_text())
    assert (exit_report["cause"], exit_report["attempt"]) == ("completed", 2)
    run_to_end(world, name)


def killed_at(world: World, operation: int, *, half: bool = False) -> int:
    """Kill a run at a disk operation, run it to the end, and return the number of steps redone.

    Raises:
        AssertionError: when the outcome is not that of the uninterrupted run.
    """

    return run_to_end(world, stop_at(world, operation, half=half))


def stop_at(world: World, operation: int, *, half: bool = False) -> str:
    """Kill a run at a disk operation and return its name."""

    def attempt(disk: Disk) -> None:
        disk.kill_at, disk.half = operation, half
        cpu_run.run(world.config(name))

    name = f"{world.algorithm}-killed-{operation}-{half}"
    assert run_attempt(world.root / name, attempt) == -9, f"operation {operation} was not reached"
    return name


def killed_somewhere(world: World, seed: int) -> int:
    """Kill a run at a random moment, run it to the end, and return the number of steps redone.

    A run that ends before it is killed is tried again with half the time: it was timed on a busier machine.
    """
    draw, name = random.Random(seed), f"{world.algorithm}-random-{seed}"
    for tries in range(MAX_TRIES):
        moment = draw.uniform(0, world.seconds / 2**tries)
        if run_attempt(world.root / name, lambda disk: cpu_run.run(world.config(name)), killed_after_s=moment) == -9:
            return run_to_end(world, name)
        shutil.rmtree(world.root / name)
    raise AssertionError(f"it ended {MAX_TRIES} times before it could be killed")


def power_cut_at(world: World, operation: int, seed: int) -> int:
    """Cut the power at a disk operation, run to the end from the surviving files, and return the steps redone."""
    name = f"{world.algorithm}-cut-{operation}-{seed}"
    survivors = world.root / f"{name}-survivors"

    def attempt(disk: Disk) -> None:
        disk.kill_at = operation
        FakeDisk(disk, survivors, seed)
        cpu_run.run(world.config(name))

    assert run_attempt(world.root / name, attempt) == -9, f"operation {operation} was not reached"
    swap(world.root / name, survivors)
    return run_to_end(world, name)


def full_after(world: World, num_bytes: int) -> int:
    """Fill the disk after `num_bytes`, run to the end, and return the number of steps redone.

    The first attempt must end by itself; the next one has room again.
    """

    def attempt(disk: Disk) -> None:
        disk.bytes_left = num_bytes
        cpu_run.run(world.config(name))

    name = f"{world.algorithm}-full-{num_bytes}"
    assert run_attempt(world.root / name, attempt) == 1, (
        f"the disk was not full after {num_bytes} bytes, or worse happened"
    )
    return run_to_end(world, name)


def run_to_end(world: World, name: str) -> int:
    """Resume a run until its end, check the outcome, and return the number of steps redone."""
    directory = world.root / name / "run"
    for _ in range(MAX_ATTEMPTS):
        if run_attempt(world.root / name, lambda disk: cpu_run.run(world.config(name))) == 0:
            break
    assert cpu_run.outcome(directory) == world.expected
    records = read_ledger(directory / "ledger.jsonl")[0]
    found = account(records)
    assert found.lost == found.repeated == ()
    assert cpu_run.made_again(records) == [], "what is recorded is neither sampled nor scored again"
    shutil.rmtree(world.root / name)
    return found.redone
