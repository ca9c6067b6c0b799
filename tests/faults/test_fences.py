"""What half arrived is learned from by nobody. Here a sample; `make test-faults` does a hundred."""

from __future__ import annotations

import fences
from lives import World

SAMPLE = 4


def test_a_batch_of_mixed_versions_is_never_learned_from(world: World) -> None:
    expected = fences.undisturbed(world)
    for seed in range(SAMPLE):
        assert fences.half_synced(world, expected, seed)
