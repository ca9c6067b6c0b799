"""Rounds that differ, killed or cut off from power at any moment: the end is equal to the bit to the uninterrupted run.

Each round learns from the initial weights, and the reference is a moving average: both must come back on resume.
"""

from __future__ import annotations

import os
import random

import pytest
import run_in_process
from run_in_process import World

pytestmark = [pytest.mark.slow, pytest.mark.parametrize("world", ["iterative-dpo-rounds"], indirect=True)]

SEED = int(os.environ["RLHF_TEST_SEED"])  # tests/conftest.py draws the seed and prints it
SAMPLE = 3


def sample(count: int) -> list[int]:
    return sorted(random.Random(SEED + count).sample(range(count), SAMPLE))


def test_killed_at_any_operation_on_the_disk(world: World) -> None:
    for operation in sample(len(world.log)):
        assert run_in_process.killed_at(world, operation, half=operation % 2 == 1) <= world.every


def test_killed_around_the_average_and_the_initial_state(world: World) -> None:
    """Kill where the initial state is removed, and where a reference is published."""
    touched = [i for i, line in enumerate(world.log) if line.startswith(("rename", "unlink")) and wanted(line)]
    assert any("reference/.version-0.partial" in world.log[i] for i in touched)
    for operation in random.Random(SEED).sample(touched, SAMPLE):
        assert run_in_process.killed_at(world, operation) <= world.every


def wanted(line: str) -> bool:
    return "run/base/" in line or "run/reference/" in line


def test_a_power_cut_loses_what_was_not_fsynced_and_nothing_else(world: World) -> None:
    for operation in sample(len(world.log)):
        assert run_in_process.power_cut_at(world, operation, seed=operation) <= world.every
