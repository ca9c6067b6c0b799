"""A run that is killed, cut off or starved at any moment ends as if nothing had happened: weights to the bit, metrics,
and every step learned from once. Here a sample; `make test-faults` does all of them."""

from __future__ import annotations

import random

import lives
from lives import World

SAMPLE = 6


def test_killed_at_any_operation_on_the_disk(world: World) -> None:
    for operation in _sample(len(world.log)):
        assert lives.killed_at(world, operation, half=operation % 2 == 1) <= world.every


def test_killed_at_any_moment(world: World) -> None:
    for seed in range(SAMPLE):
        assert lives.killed_somewhere(world, seed) <= world.every


def test_a_power_cut_loses_what_was_not_fsynced_and_nothing_else(world: World) -> None:
    for operation in _sample(len(world.log)):
        assert lives.power_cut_at(world, operation, seed=operation) <= world.every


def test_a_full_disk_ends_the_run_and_loses_nothing(world: World) -> None:
    for num_bytes in _sample(world.num_bytes)[: SAMPLE // 2]:
        assert lives.full_after(world, num_bytes) <= world.every


def test_the_log_of_operations_is_that_of_a_commit(world: World) -> None:
    """The injector sees what it is meant to see: were it blind, every test above would hold."""
    assert world.log.index("write run/checkpoints/.step-2.partial/manifest.json") < world.log.index(
        "rename run/checkpoints/.step-2.partial"
    )
    assert {line.split()[0] for line in world.log} >= {"write", "fsync", "rename", "replace", "unlink", "rmdir"}


def _sample(count: int) -> list[int]:
    """One from each of equal parts of the run, the same ones every time."""
    drawn = random.Random(count)
    return [drawn.randrange(count * i // SAMPLE, count * (i + 1) // SAMPLE) for i in range(SAMPLE)]
