"""Runs that are killed, cut off from power or out of disk space at any moment, and resumed to the end.

The weights must be equal to the bit to those of the uninterrupted run, the metrics equal, and every step trained on
exactly once. Each session draws a new sample of the moments; `make test-faults` does all of them.
"""

from __future__ import annotations

import json
import os
import random
from pathlib import Path

import cpu_run
import pytest
import run_in_process
from injection import Disk
from run_in_process import World

from orchestrator import disk
from orchestrator.errors import DiskFailed, WorkerFailed
from orchestrator.rundir.ledger import read_ledger
from orchestrator.rundir.manifest import verify

pytestmark = pytest.mark.slow

SAMPLE, SEED = 1, int(os.environ["RLHF_TEST_SEED"])  # tests/conftest.py draws the seed and prints it
every_world = pytest.mark.parametrize("world", cpu_run.ALGORITHMS, indirect=True)


@every_world
def test_killed_at_any_operation_on_the_disk(world: World) -> None:
    for operation in _sample(len(world.log)):
        assert run_in_process.killed_at(world, operation, half=operation % 2 == 1) <= world.every


@pytest.mark.parametrize("world", ["grpo-ahead", "iterative-dpo-updates"], indirect=True)
def test_killed_at_any_record_of_the_ledger(world: World) -> None:
    """Check also that rollouts in flight are those of the uninterrupted run, where engines sample a version ahead."""
    records = [i for i, line in enumerate(world.log) if line == "write run/ledger.jsonl"]
    for operation in (records[i] for i in _sample(len(records))):
        assert run_in_process.killed_at(world, operation, half=operation % 2 == 1) <= world.every


@every_world
def test_killed_at_any_moment(world: World) -> None:
    for seed in range(SEED, SEED + SAMPLE):
        assert run_in_process.killed_somewhere(world, seed) <= world.every


def test_a_power_cut_loses_what_was_not_fsynced_and_nothing_else(world: World) -> None:
    for operation in _sample(len(world.log)):
        assert run_in_process.power_cut_at(world, operation, seed=operation) <= world.every


def test_a_full_disk_ends_the_run_and_loses_nothing(world: World) -> None:
    for num_bytes in _sample(world.num_bytes):
        assert run_in_process.full_after(world, num_bytes) <= world.every


def test_a_full_disk_is_named_in_exit_json_with_the_resume_command(world: World) -> None:
    """Fill the disk in the middle of the second checkpoint. Its bytes are freed, and the first checkpoint is intact."""
    size = sum(p.stat().st_size for p in world.directory.joinpath("checkpoints/step-2").rglob("*"))
    name = f"{world.algorithm}-named"

    def attempt(disk: Disk) -> None:
        disk.bytes_left, disk.full_below = size // 2, ".step-2.partial"
        cpu_run.run(world.config(name))

    assert run_in_process.run_attempt(world.root / name, attempt) == 1
    run = world.root / name / "run"
    exit_report = json.loads((run / "exit.json").read_text())
    assert (exit_report["cause"], exit_report["step"], exit_report["exit_code"]) == ("disk_full", 2, 1)
    assert "bytes are free" in exit_report["message"]
    assert exit_report["resume"] in exit_report["message"]
    assert [p.name for p in (run / "checkpoints").iterdir()] == ["step-1"]
    assert verify(run / "checkpoints" / "step-1") == ""
    assert run_in_process.run_to_end(world, name) <= 1


@pytest.mark.parametrize("world", ["grpo"], indirect=True)
def test_a_disk_that_breaks_in_a_checkpoint_is_named(world: World) -> None:
    """Raise EIO where a learner writes to the second checkpoint."""

    def attempt(disk: Disk) -> None:
        disk.broken_below = ".step-2.partial"
        cpu_run.run(world.config("breaks"))

    assert run_in_process.run_attempt(world.root / "breaks", attempt) == 1
    run = world.root / "breaks" / "run"
    exit_report = json.loads((run / "exit.json").read_text())
    assert (exit_report["cause"], exit_report["step"]) == ("disk_failed", 2)
    assert "Input/output error; nothing that was written before is lost" in exit_report["message"]
    assert [p.name for p in (run / "checkpoints").iterdir()] == ["step-1"]
    assert run_in_process.run_to_end(world, "breaks") <= 1


@pytest.mark.parametrize(
    ("last", "cause", "place"),
    [
        ("OSError: [Errno 5] Input/output error: '/runs/a/rollouts/x'", "disk_failed", "/runs/a/rollouts/x"),
        ("OSError: [Errno 30] Read-only file system", "disk_failed", "/runs/a"),
        ("OSError: [Errno 28] No space left on device", "disk_full", "/runs/a"),
        ("OSError: [Errno 5] Input/output error: '/models/base'", "worker_failed", ""),  # outside the run directory
        ("RuntimeError: after [Errno 5] Input/output error came more", "worker_failed", ""),
    ],
)
def test_a_disk_error_of_a_worker_is_reported_as_a_disk_error(last: str, cause: str, place: str) -> None:
    failed = WorkerFailed("rollout", 1, f"Traceback (most recent call last):\n  …\n{last}\n")
    explained = disk.explain(failed, Path("/runs/a"), "rlhf resume /runs/a")
    assert isinstance(explained, DiskFailed if place else WorkerFailed)
    assert (explained.cause, explained.problems[0].where) == (cause, place)


@pytest.mark.parametrize("world", ["grpo"], indirect=True)
def test_a_disk_that_cannot_be_written_ends_the_run_before_its_first_step(world: World) -> None:
    name = "broken"

    def attempt(disk: Disk) -> None:
        disk.broken_below = "checkpoints"
        cpu_run.run(world.config(name))

    assert run_in_process.run_attempt(world.root / name, attempt) == 1
    run = world.root / name / "run"
    assert json.loads((run / "exit.json").read_text())["cause"] == "disk_failed"
    assert [r.fact for r in read_ledger(run / "ledger.jsonl")[0]] == []
    assert run_in_process.run_to_end(world, name) == 0


def test_the_log_of_operations_is_that_of_a_commit(world: World) -> None:
    """Check that the injector sees the operations of a commit. With a blind injector every test above would pass."""
    assert world.log.index("write run/checkpoints/.step-2.partial/manifest.json") < world.log.index(
        "rename run/checkpoints/.step-2.partial"
    )
    assert {line.split()[0] for line in world.log} >= {"write", "fsync", "rename", "replace", "unlink", "rmdir"}


def _sample(count: int) -> list[int]:
    """Draw one from each of `SAMPLE` equal parts of the run."""
    drawn = random.Random(SEED + count)
    return [drawn.randrange(count * i // SAMPLE, count * (i + 1) // SAMPLE) for i in range(SAMPLE)]
