"""Answers, critiques and revisions as runs: each survives as the others do, and one makes the prompts of the next."""

from __future__ import annotations

import os
from pathlib import Path

import cpu_run
import pyarrow.parquet as pq
import pytest
import run_in_process
from run_in_process import World

from orchestrator.data import read_examples
from orchestrator.generation.data_set import read_summary

pytestmark = pytest.mark.slow

SAMPLE, SEED = 1, int(os.environ["RLHF_TEST_SEED"])
of_a_constitution = pytest.mark.parametrize("world", ["critique", "revision"], indirect=True)


@of_a_constitution
def test_killed_at_any_operation_on_the_disk_it_writes_the_same_files(world: World) -> None:
    """Check it at one operation, which differs from session to session."""
    operations = sorted({(SEED * 7919 + i * len(world.log) // SAMPLE) % len(world.log) for i in range(SAMPLE)})
    for operation in operations:
        assert run_in_process.killed_at(world, operation, half=operation % 2 == 1) <= world.every


@pytest.mark.long
@of_a_constitution
def test_killed_fifty_times_at_random_it_writes_the_same_files(world: World) -> None:
    for seed in range(SEED, SEED + 50):
        assert run_in_process.killed_somewhere(world, seed) <= world.every


def test_answers_are_criticised_revised_and_trained_on(task: Path, tmp_path: Path) -> None:
    """Run two rounds with a random model: every row leads back to the answer that it is about."""
    source, files = str(task / "prompts.jsonl"), {}
    for name, algorithm in (("answers", "generate"), ("c1", "critique"), ("r1", "revision"), ("c2", "critique")):
        rollout = {**cpu_run.ROLLOUT, "max_prompt_length": 24, "max_completion_length": 5, "tokens_per_chunk": 512}
        settings = cpu_run.config(task, tmp_path, algorithm, name=name, data={"prompts": source}, rollout=rollout)
        cpu_run.run(settings)
        source, files[name] = str(settings.data_file), pq.read_table(settings.data_file).to_pylist()
    for before, after, column in (("answers", "c1", "completion"), ("r1", "c2", "completion")):
        for row in files[after]:
            criticised = files[before][int(row["from_row"].rpartition(":")[2]) - 1]
            assert (row["prompt"], row["prompt_id"]) == (criticised["prompt"], criticised["prompt_id"])
            assert row["criticised"] == criticised[column]
    for row in files["r1"]:
        critique = files["c1"][int(row["from_row"].rpartition(":")[2]) - 1]
        assert all(row[key] == critique[key] for key in ("prompt", "criticised", "principle", "critique", "initial"))
    assert {row["principle"] for row in files["c1"]} == {"order", "letters"}
    assert {row["round"] for row in files["c2"]} == {2}
    pairs = read_examples(str(tmp_path / "r1" / "data" / "pairs.parquet"), algorithm="dpo")
    summary = read_summary(tmp_path / "r1" / "data")
    assert summary is not None
    assert summary["pairs"] == len(pairs) > 0
    assert summary["pairs"] + summary["unchanged"] == summary["rows"] == len(files["r1"])
