"""Partial publications, which must never be trained on, and two drivers of one run, of which only one may write.

The tests here are a sample; `make test-faults` does a hundred partial publications.
"""

from __future__ import annotations

import os

import fences
import pytest
import run_in_process
from run_in_process import World

pytestmark = pytest.mark.slow

SAMPLE, SEED = 2, int(os.environ["RLHF_TEST_SEED"])  # tests/conftest.py draws the seed and prints it


def test_a_batch_of_mixed_versions_is_never_trained_on(world: World) -> None:
    expected = fences.undisturbed(world)
    for seed in range(SEED, SEED + SAMPLE):
        assert fences.half_synced(world, expected, seed)


@pytest.mark.parametrize("world", ["grpo"], indirect=True)
@pytest.mark.parametrize("engine", range(fences.NUM_ENGINES))
def test_a_publication_with_a_flipped_bit_is_never_sampled_from(world: World, engine: int) -> None:
    """Flip the lowest bit of one weight in the segment: no metric would show it, but the checksum does."""
    expected = fences.undisturbed(world)
    assert fences.stopped(world, expected, "grpo-flipped", fences.FLIPPED_BIT, engine, 1)


@pytest.mark.parametrize("world", ["grpo"], indirect=True)
def test_f30_a_driver_that_wakes_up_after_another_took_over_writes_nothing(world: World) -> None:
    for records in (3, 9):
        run_in_process.taken_over(world, records)
