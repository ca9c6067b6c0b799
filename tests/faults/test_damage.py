"""Damaged files, which must be detected before anything in them is used.

The tests here are a sample; `make test-faults` does a thousand.
"""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cpu_run
import damage
import pytest
import run_in_process
from run_in_process import World

from orchestrator.cli.main import main
from orchestrator.errors import ResumeError
from orchestrator.rundir.ledger import read_ledger

pytestmark = pytest.mark.slow

SEEDS = range(40)


@pytest.fixture
def finished(world: World) -> Path:
    return world.root / f"whole-{world.algorithm}-{world.every}" / "run"


def test_a_damaged_checkpoint_is_refused(finished: Path, tmp_path: Path) -> None:
    checkpoint = finished / "checkpoints" / "step-3"
    assert all(damage.damaged_checkpoint_is_refused(checkpoint, tmp_path / "copy", seed) for seed in SEEDS)


def test_a_damaged_ledger_is_refused_or_read_up_to_the_damage(finished: Path, tmp_path: Path) -> None:
    assert all(damage.damaged_ledger_is_detected(finished / "ledger.jsonl", tmp_path / "copy", seed) for seed in SEEDS)


def test_a_damaged_newest_checkpoint_falls_back_to_the_one_before(world: World) -> None:
    def last_commit(line: str) -> bool:
        return line == "mkdir run/.model.partial"

    operation = next(i for i, line in enumerate(world.log) if last_commit(line))
    name = run_in_process.stop_at(world, operation)
    state = world.root / name / "run" / "checkpoints" / "step-3" / "state.json"
    state.write_bytes(state.read_bytes()[:-1])
    assert run_in_process.run_attempt(world.root / name, lambda disk: cpu_run.run(world.config(name))) == 0
    run = world.root / name / "run"
    records = read_ledger(run / "ledger.jsonl")[0]
    attempt = [r for r in records if r.fact == "ATTEMPT"][-1]
    assert attempt.step == 2
    assert attempt.details["refused"] == [f"{state.parent}: state.json is not what was written"]
    # Recalled from the attempt before, not sampled and scored again.
    assert [r.details["recalled"] for r in records if r.step == 3 and r.fact in ("GENERATED", "SCORED")] == (
        [False] * 4 + [True] * 4
    )
    assert run_in_process.run_to_end(world, name) == 1


# ------------------------------------------------------------------------------------------------ rlhf ledger verify


@pytest.mark.parametrize("world", ["grpo"], indirect=True)
def test_checkpoints_that_are_gone_never_mean_step_0(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    name = run_in_process.stop_at(
        world, next(i for i, line in enumerate(world.log) if line == "mkdir run/.model.partial")
    )
    run, aside = world.root / name / "run", world.root / name / "aside"
    ledger, metrics = (run / "ledger.jsonl").read_bytes(), (run / "metrics.jsonl").read_bytes()
    (run / "checkpoints").rename(aside)
    monkeypatch.setattr("workers.files.shared_storage.LAG_S", 0.0)
    with pytest.raises(ResumeError, match="step-3: missing, although the ledger lists it as complete"):
        cpu_run.run(world.config(name))
    assert ((run / "ledger.jsonl").read_bytes(), (run / "metrics.jsonl").read_bytes()) == (ledger, metrics)
    (run / "checkpoints").rmdir()
    aside.rename(run / "checkpoints")
    assert run_in_process.run_to_end(world, name) == 0


@pytest.mark.parametrize("world", ["grpo"], indirect=True)
def test_a_stale_directory_listing_is_read_again(world: World) -> None:
    """Simulate shared storage, on which another machine sees the newest checkpoint a little later."""
    name = run_in_process.stop_at(
        world, next(i for i, line in enumerate(world.log) if line == "mkdir run/.model.partial")
    )
    run = world.root / name / "run"
    stale = [3]  # listings that still show the old content

    def stale_scandir(path: Any = ".") -> Any:
        if str(path) != str(run / "checkpoints") or not stale[0]:
            return real(path)
        stale[0] -= 1
        with real(path) as found:
            return contextlib.nullcontext([entry for entry in found if entry.name != "step-3"])

    def attempt(disk: object) -> None:
        os.scandir = stale_scandir  # type: ignore[assignment]  # in this fork only
        cpu_run.run(world.config(name))
        assert stale == [0], "the directory was never listed"

    real = os.scandir
    assert run_in_process.run_attempt(world.root / name, attempt) == 0
    attempts = [r for r in read_ledger(run / "ledger.jsonl")[0] if r.fact == "ATTEMPT"]
    assert (attempts[-1].step, attempts[-1].details) == (3, {})
    assert run_in_process.run_to_end(world, name) == 0


def test_a_damaged_rollout_is_sampled_again(world: World) -> None:
    """Check that the current engines sample it again: in a synchronous run the same completions, to the bit."""
    operation = next(i for i, line in enumerate(world.log) if line == "mkdir run/.model.partial")
    name = run_in_process.stop_at(world, operation)
    run = world.root / name / "run"
    flip_a_bit(run / "checkpoints" / "step-3" / "state.json")
    for file in (run / "rollouts" / "step-3").glob("*.safetensors"):
        flip_a_bit(file)
    assert run_in_process.run_attempt(world.root / name, lambda disk: cpu_run.run(world.config(name))) == 0
    recalled = [
        r.details["recalled"] for r in read_ledger(run / "ledger.jsonl")[0] if r.step == 3 and "files" in r.details
    ]
    assert recalled == [False] * 8
    if "ahead" not in world.algorithm:
        assert cpu_run.outcome(run) == world.expected
    shutil.rmtree(world.root / name)


@pytest.mark.parametrize("world", ["grpo"], indirect=True)
def test_a_damaged_chunk_is_sampled_again_alone(world: World) -> None:
    operation = next(i for i, line in enumerate(world.log) if line == "mkdir run/.model.partial")
    name = run_in_process.stop_at(world, operation)
    run = world.root / name / "run"
    flip_a_bit(run / "checkpoints" / "step-3" / "state.json")
    flip_a_bit(run / "rollouts" / "step-3" / "chunk-1-rollout-0.safetensors")
    assert run_in_process.run_attempt(world.root / name, lambda disk: cpu_run.run(world.config(name))) == 0
    records = [r for r in read_ledger(run / "ledger.jsonl")[0] if r.step == 3 and "chunk" in r.details]
    assert sorted((r.details["chunk"], r.fact, r.details["recalled"]) for r in records[4:]) == [
        (0, "GENERATED", True),
        (0, "SCORED", True),
        (1, "GENERATED", False),
        (1, "SCORED", False),
    ]
    assert cpu_run.outcome(run) == world.expected
    shutil.rmtree(world.root / name)


def test_data_that_changed_are_refused(world: World) -> None:
    """Change the prompts of a stopped run. They are restored at the end, because all runs of the world share them."""
    name = run_in_process.stop_at(
        world, next(i for i, line in enumerate(world.log) if line == "mkdir run/.model.partial")
    )
    prompts = world.root / "prompts.jsonl"
    text = prompts.read_text()
    prompts.write_text(text.replace("aa>", "ba>"))
    try:
        with pytest.raises(ResumeError, match=r"data\.prompts has changed since the checkpoint"):
            cpu_run.run(world.config(name))
    finally:
        prompts.write_text(text)
    assert run_in_process.run_to_end(world, name) == 0


def flip_a_bit(path: Path) -> None:
    raw = bytearray(path.read_bytes())
    raw[len(raw) // 2] ^= 1
    path.write_bytes(raw)


def lose_a_record(path: Path, fact: str) -> None:
    """Remove a record and rewrite the others with valid numbers and hashes, so that only accounting can notice."""
    from dataclasses import replace

    kept = [r for r in read_ledger(path)[0] if not (r.fact == fact and r.step == 2)]
    path.write_bytes(b"".join(replace(r, seq=i).line() for i, r in enumerate(kept)))


def test_verify_accepts_a_finished_run(finished: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["ledger", "verify", str(finished)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(":")[0] for line in lines] == [
        "good  ledger",
        "good  steps",
        "good  checkpoints/step-2",
        "good  checkpoints/step-3",
        "good  rollouts",
        "good  model",
    ]
    assert "3 trained once, none lost, none repeated" in lines[1]


@pytest.mark.parametrize(
    ("change", "reported"),
    [
        (lambda run: flip_a_bit(run / "checkpoints/step-2/state.json"), "step-2: state.json is not what was written"),
        (lambda run: shutil.rmtree(run / "checkpoints/step-3"), "step-3: missing, although the ledger lists it"),
        (lambda run: flip_a_bit(run / "ledger.jsonl"), "a record is damaged, but later ones are intact"),
        (
            lambda run: flip_a_bit(run / "rollouts/step-3/chunk-0-rollout-0.safetensors"),
            "is not what was written; its step",
        ),
        (
            lambda run: (run / "rollouts/step-3/chunk-1-reward-0.safetensors").unlink(),
            "chunk-1-reward-0.safetensors is missing",
        ),
        (lambda run: lose_a_record(run / "ledger.jsonl", "TRAINED"), "never trained: 2"),
        (lambda run: lose_a_record(run / "ledger.jsonl", "PLANNED"), "is out of order, after nothing of the same step"),
        (lambda run: lose_a_record(run / "ledger.jsonl", "SCORED"), "follows no SCORED record of its step"),
        (lambda run: shutil.rmtree(run / "model"), "missing, although the ledger says that the run is finished"),
    ],
)
def test_verify_reports_damage(
    finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], change: Callable[[Path], object], reported: str
) -> None:
    copy = tmp_path / "run"
    shutil.copytree(finished, copy, symlinks=True)
    change(copy)
    assert main(["ledger", "verify", str(copy)]) == 1
    assert any(reported in line for line in capsys.readouterr().out.splitlines() if line.startswith("BAD "))
