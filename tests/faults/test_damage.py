"""Damage is found before anything is believed. Here a sample; `make test-faults` does a thousand."""

from __future__ import annotations

from pathlib import Path

import damage
import lives
import pytest
from lives import World

SEEDS = range(40)


@pytest.fixture
def finished(world: World) -> Path:
    return world.root / f"whole-{world.algorithm}-{world.every}" / "run"


def test_a_damaged_checkpoint_is_refused(finished: Path, tmp_path: Path) -> None:
    checkpoint = finished / "checkpoints" / "step-3"
    assert all(damage.checkpoint_is_refused(checkpoint, tmp_path / "copy", seed) for seed in SEEDS)


def test_a_damaged_ledger_is_believed_up_to_the_damage(finished: Path, tmp_path: Path) -> None:
    assert all(damage.ledger_is_not_believed(finished / "ledger.jsonl", tmp_path / "copy", seed) for seed in SEEDS)


def test_a_damaged_newest_checkpoint_falls_back_to_the_one_before(world: World) -> None:
    def last_commit(line: str) -> bool:
        return line == "mkdir run/.model.partial"

    operation = next(i for i, line in enumerate(world.log) if last_commit(line))
    name = lives.stop_at(world, operation)
    state = world.root / name / "run" / "checkpoints" / "step-3" / "state.json"
    state.write_bytes(state.read_bytes()[:-1])
    assert lives.go_on(world, name) == 1
