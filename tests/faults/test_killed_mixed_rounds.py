"""Rounds with pairs of earlier rounds and of a dataset, killed or cut off from power: the end is equal to the bit.

A round reads the groups of all rounds before it. They must be on disk, and the same ones, whenever it is taken again.
"""

from __future__ import annotations

import os
import random

import pyarrow.parquet as pq
import pytest
import run_in_process
from run_in_process import World

pytestmark = [pytest.mark.slow, pytest.mark.parametrize("world", ["iterative-dpo-mixed"], indirect=True)]

SEED = int(os.environ["RLHF_TEST_SEED"])  # tests/conftest.py draws the seed and prints it
SAMPLE = 3


def test_pairs_of_all_rounds_before_are_mixed_in(world: World) -> None:
    ids = [
        pq.read_table(world.directory / "rounds" / str(n) / "mixed.parquet")["prompt_id"].to_pylist() for n in (1, 2, 3)
    ]
    of_dataset = [id for own in ids for id in own if id.startswith("pairs.jsonl:")]
    assert len(of_dataset) == len(set(of_dataset)) == 3 * 2, "half as many rows as prompts, in each round other ones"
    assert {id.split("/")[1] for id in ids[1] if "/" in id} == {"1"}
    assert {id.split("/")[1] for id in ids[2] if "/" in id} == {"1", "2"}
    assert [row["pairs/mixed"] for row in world.expected[1]] == [len(own) for own in ids]


def test_killed_at_any_operation_on_the_disk(world: World) -> None:
    operations = random.Random(SEED).sample(range(len(world.log)), SAMPLE)
    for operation in operations:
        assert run_in_process.killed_at(world, operation, half=operation % 2 == 1) <= world.every


def test_killed_around_the_files_of_rounds(world: World) -> None:
    touched = [i for i, line in enumerate(world.log) if line.startswith("replace") and "rounds/" in line]
    assert any("mixed.parquet" in world.log[i] for i in touched)
    assert any("groups.parquet" in world.log[i] for i in touched)
    for operation in random.Random(SEED).sample(touched, SAMPLE):
        assert run_in_process.killed_at(world, operation) <= world.every


def test_a_power_cut_loses_no_pairs_of_earlier_rounds(world: World) -> None:
    for operation in random.Random(SEED + 1).sample(range(len(world.log)), SAMPLE):
        assert run_in_process.power_cut_at(world, operation, seed=operation) <= world.every
