"""Damage is found before anything is believed. Here a sample; `make test-faults` does a thousand."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import damage
import lives
import pytest
from lives import World

from orchestrator.cli import main

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


# ------------------------------------------------------------------------------------------------ rlhf ledger verify


def flip_a_bit(path: Path) -> None:
    raw = bytearray(path.read_bytes())
    raw[len(raw) // 2] ^= 1
    path.write_bytes(raw)


def lose_a_record(path: Path, fact: str) -> None:
    """With the sequence and the hashes mended, so that only arithmetic can tell."""
    from dataclasses import replace

    from orchestrator.run.ledger import read_ledger

    kept = [r for r in read_ledger(path)[0] if not (r.fact == fact and r.step == 2)]
    path.write_bytes(b"".join(replace(r, seq=i).line() for i, r in enumerate(kept)))


def test_a_finished_run_is_good(finished: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["ledger", "verify", str(finished)]) == 0
    told = capsys.readouterr().out.splitlines()
    assert [line.split(":")[0] for line in told] == [
        "good  ledger",
        "good  steps",
        "good  checkpoints/step-2",
        "good  checkpoints/step-3",
        "good  rollouts",
        "good  model",
    ]
    assert "3 learned from once, none lost, none repeated" in told[1]


@pytest.mark.parametrize(
    ("harm", "told"),
    [
        (lambda run: flip_a_bit(run / "checkpoints/step-2/state.json"), "step-2: state.json is not what was written"),
        (lambda run: shutil.rmtree(run / "checkpoints/step-3"), "step-3: the ledger calls it complete"),
        (lambda run: flip_a_bit(run / "ledger.jsonl"), "a record is damaged, and whole ones follow it"),
        (lambda run: flip_a_bit(run / "rollouts/step-3/rollout-0.safetensors"), "is not what was written; its step"),
        (lambda run: (run / "rollouts/step-3/reward-0.safetensors").unlink(), "reward-0.safetensors is missing"),
        (lambda run: lose_a_record(run / "ledger.jsonl", "TRAINED"), "never learned from: 2"),
        (lambda run: lose_a_record(run / "ledger.jsonl", "PLANNED"), "does not follow what its step has done: nothing"),
        (lambda run: lose_a_record(run / "ledger.jsonl", "SCORED"), "learned from what was never scored"),
        (lambda run: shutil.rmtree(run / "model"), "the ledger says that the run is finished, and there is none"),
    ],
)
def test_what_is_not_as_it_was_written_is_told(
    finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], harm: Callable[[Path], object], told: str
) -> None:
    copy = tmp_path / "run"
    shutil.copytree(finished, copy, symlinks=True)
    harm(copy)
    assert main(["ledger", "verify", str(copy)]) == 1
    assert any(told in line for line in capsys.readouterr().out.splitlines() if line.startswith("BAD "))
