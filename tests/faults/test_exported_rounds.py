"""Rounds of a real run in one process: the best one is exported, others from checkpoints, and each is paired again."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import cpu_run
import pytest
import run_in_process
from run_in_process import World

from orchestrator.driver.export_round import export_round
from orchestrator.errors import BadInput
from orchestrator.rundir.directory import RunDirectory
from orchestrator.rundir.ledger import Fact, read_ledger

pytestmark = [pytest.mark.slow, pytest.mark.parametrize("world", ["iterative-dpo"], indirect=True)]

PAIR = """
import sys
from orchestrator.cli.main import main
code = main(sys.argv[1:])
assert not {"torch", "ray", "transformers", "vllm"} & {*sys.modules}, "needs a machine with a GPU's software"
sys.exit(code)
"""


def weights(model: Path) -> bytes:
    return (model / "model.safetensors").read_bytes()


def exported(world: World, directory: RunDirectory, number: int, output: Path) -> str:
    """Export a round in a process of its own, and return its weights' source as it is said."""
    said = output.with_suffix(".txt")

    def attempt(_: object) -> None:
        export_round(
            directory, directory.config(), number, output, say=said.write_text, start_cluster=cpu_run.local_cluster
        )

    assert run_in_process.run_attempt(world.root, attempt) == 0
    return said.read_text()


def test_the_model_is_that_of_the_best_round(world: World, tmp_path: Path) -> None:
    whole = RunDirectory(world.directory)
    assert [row["eval/reward"] for row in cpu_run.rows(whole.path)] == [0.0, 0.875, 1.0, 1.0]
    exit = whole.read_exit()
    assert exit is not None
    assert {name: exit["exported"][name] for name in ("round", "rounds", "by", "value", "unsure")} == {
        "round": 2, "rounds": 3, "by": "eval/reward", "value": 1.0, "unsure": [3],
    }  # fmt: skip
    (finished,) = (r for r in read_ledger(whole.ledger)[0] if r.fact == Fact.finished)
    assert finished.details["round"] == 2
    assert whole.rounds_with("model") == [], "the model has been moved out of its round"

    copy = RunDirectory(tmp_path / "run")
    shutil.copytree(whole.path, copy.path, symlinks=True)
    assert "stored as a model" in exported(world, copy, 2, tmp_path / "best")
    assert weights(tmp_path / "best") == weights(copy.model)
    assert "in checkpoints/step-3" in exported(world, copy, 3, tmp_path / "last").replace(f"{copy.path}/", "")
    assert weights(tmp_path / "last") != weights(copy.model)
    shutil.rmtree(copy.model)
    exported(world, copy, 2, tmp_path / "again")
    assert weights(tmp_path / "again") == weights(tmp_path / "best"), "from the checkpoint of its round"


def test_a_round_that_is_not_stored_is_refused(world: World, tmp_path: Path) -> None:
    directory = RunDirectory(world.directory)
    with pytest.raises(BadInput, match="the model of round 1 is not stored") as caught:
        export_round(directory, directory.config(), 1, tmp_path / "x", say=print)
    assert "export one of these: 2, 3" in str(caught.value)
    (tmp_path / "there").mkdir()
    with pytest.raises(BadInput, match="already exists"):
        export_round(directory, directory.config(), 2, tmp_path / "there", say=print)


def test_a_round_is_paired_again_without_torch(world: World, tmp_path: Path) -> None:
    def pair(number: int, *overrides: str) -> Path:
        output = tmp_path / f"{number}{len(overrides)}.parquet"
        arguments = ["pair", str(world.directory), "--round", str(number), "--output", str(output), *overrides]
        done = subprocess.run([sys.executable, "-c", PAIR, *arguments], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        return output

    for number in (1, 2, 3):
        round = RunDirectory(world.directory).round(number)
        assert pair(number).read_bytes() == (round / "pairs.parquet").read_bytes()
        assert json.loads((round / "round.json").read_text())["round"] == number
    assert pair(1, "algorithm.pairs.max_pairs=1").read_bytes() != (tmp_path / "10.parquet").read_bytes()
