"""Runs that generate a data set: killed at any moment, they write the same file to the bit and sample nothing twice."""

from __future__ import annotations

import json
import os
import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import cpu_run
import pyarrow.parquet as pq
import pytest
import run_in_process
from run_in_process import World

from orchestrator.cli.main import main
from orchestrator.data import read_examples
from orchestrator.generation.data_set import read_summary
from orchestrator.rundir.ledger import Fact, read_ledger

pytestmark = pytest.mark.slow

SAMPLE, SEED = 1, int(os.environ["RLHF_TEST_SEED"])
of_generation = pytest.mark.parametrize("world", ["generate"], indirect=True)


@of_generation
def test_every_prompt_is_sampled_once_and_every_completion_has_its_provenance(world: World) -> None:
    directory = world.directory
    rows = pq.read_table(directory / "data" / "rows.parquet").to_pylist()
    dropped = pq.read_table(directory / "data" / "dropped.parquet").to_pylist()
    summary = read_summary(directory / "data")
    assert summary is not None
    assert (summary["prompts"], summary["completions"]) == (16, 64)
    assert summary["rows"] == len(rows) > 0
    assert sum(summary["dropped"].values()) == len(dropped) == 64 - len(rows)
    sampled = Counter((row["prompt_id"], row["sample"]) for row in rows + dropped)
    assert len(sampled) == 64
    assert set(sampled.values()) == {1}
    assert len({row["seed"] for row in rows + dropped}) == 64, "each completion has its own seed"
    for row in rows:
        assert (row["version"], row["temperature"], row["model"]) == (0, 1.0, str(world.root / "model"))
        assert row["score"] == pytest.approx(row["score_letters_a"])
        assert row["prompt"].endswith(">")
    assert max(Counter((row["prompt_id"], row["completion"].strip()) for row in rows).values()) == 1
    assert {row["reason"] for row in dropped} <= {"duplicate", "empty", "repetition"}


@of_generation
def test_its_rows_are_a_dataset_of_demonstrations(world: World) -> None:
    path = world.directory / "data" / "rows.parquet"
    examples = read_examples(str(path), algorithm="sft")
    assert len(examples) == pq.read_metadata(path).num_rows
    assert all(len(example.completions) == 1 and example.scores is None for example in examples)


@of_generation
def test_killed_at_any_operation_on_the_disk_it_writes_the_same_file(world: World) -> None:
    """Check it at one operation, which differs from session to session."""
    operations = sorted({(SEED * 7919 + i * len(world.log) // SAMPLE) % len(world.log) for i in range(SAMPLE)})
    for operation in operations:
        assert run_in_process.killed_at(world, operation, half=operation % 2 == 1) <= world.every


@pytest.mark.long
@of_generation
def test_killed_fifty_times_at_random_it_writes_the_same_file(world: World) -> None:
    for seed in range(SEED, SEED + 50):
        assert run_in_process.killed_somewhere(world, seed) <= world.every


@of_generation
def test_no_chunk_is_sampled_twice(world: World) -> None:
    records, *_ = read_ledger(world.directory / "ledger.jsonl")
    chunks = Counter((r.step, r.details["chunk"]) for r in records if r.fact is Fact.generated)
    assert set(chunks.values()) == {1}
    assert sum(r.details["prompts"] for r in records if r.fact is Fact.generated) == 16


def test_ratings_are_a_dataset_of_preferences(task: Path, tmp_path: Path) -> None:
    algorithm = {**cpu_run.FURTHER["generate"], "rows": "ratings", "duplicates": {"near": None}}
    settings = cpu_run.config(task, tmp_path, "generate", algorithm=algorithm)
    cpu_run.run(settings)
    examples = read_examples(str(settings.data_file), algorithm="dpo")
    assert len(examples) > 1
    for example in examples:
        assert example.scores is not None
        assert len(example.completions) == len(example.scores) >= 2
        assert list(example.scores) == sorted(example.scores, reverse=True)


def test_prompts_of_an_evaluation_are_in_no_row(task: Path, tmp_path: Path) -> None:
    held_out = tmp_path / "heldout.jsonl"
    held_out.write_text(json.dumps({"prompt": " AB> "}) + "\n")
    data = {"prompts": str(task / "prompts.jsonl"), "eval_prompts": str(held_out)}
    settings = cpu_run.config(task, tmp_path, "generate", data=data)
    cpu_run.run(settings)
    rows = pq.read_table(settings.data_file).to_pylist()
    assert "ab>" not in {row["prompt"] for row in rows}
    assert len({row["prompt"] for row in rows}) == 15
    summary = read_summary(settings.data_file.parent)
    assert summary is not None
    assert summary["dropped"]["evaluation"] > 0


# ------------------------------------------------------------------------------------------------ filtered anew


def filtered(directory: Path, target: Path, *overrides: str) -> list[dict[str, Any]]:
    assert main(["filter", str(directory), *overrides, "--to", str(target)]) == 0
    rows: list[dict[str, Any]] = pq.read_table(target / "rows.parquet").to_pylist()
    return rows


@of_generation
def test_the_samples_of_a_run_are_filtered_anew(world: World, tmp_path: Path) -> None:
    before = {path: path.read_bytes() for path in world.directory.rglob("*") if path.is_file()}
    same = filtered(world.directory, tmp_path / "same")
    assert same == pq.read_table(world.directory / "data" / "rows.parquet").to_pylist()
    one = filtered(world.directory, tmp_path / "one", "algorithm.per_prompt=1")
    assert len(one) == len({row["prompt_id"] for row in one}) == len({row["prompt_id"] for row in same}) < len(same)
    by_score = sorted(same, key=lambda row: float(row["score"]))
    assert {row["prompt_id"]: row["score"] for row in one} == {row["prompt_id"]: row["score"] for row in by_score}
    rated = filtered(world.directory, tmp_path / "rated", "algorithm.rows=ratings")
    assert {len(row["ratings"]) for row in rated} <= {2, 3, 4}
    assert {path: path.read_bytes() for path in world.directory.rglob("*") if path.is_file()} == before


@of_generation
def test_a_data_set_of_a_run_that_was_killed_has_what_was_sampled(world: World, tmp_path: Path) -> None:
    directory = tmp_path / "runs" / world.directory.name
    shutil.copytree(world.directory, directory)
    shutil.rmtree(directory / "data")
    (directory / "exit.json").unlink()
    first, *later = sorted((directory / "parts").iterdir())
    for part in later:
        part.unlink()
    rows = filtered(directory, tmp_path / "half")
    assert {row["prompt_id"] for row in rows} <= set(pq.read_table(first)["prompt_id"].to_pylist())


@of_generation
@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["rollout.temperature=0.5"], "rollout.temperature was 1.0 and would be 0.5"),
        (["algorithm.num_generations=2"], "were sampled and scored with it"),
        (["algorithm.filters.min_score=9"], "no row is left of 64 completions"),
    ],
)
def test_what_cannot_be_filtered_anew_is_refused(
    world: World, tmp_path: Path, overrides: list[str], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["filter", str(world.directory), *overrides, "--to", str(tmp_path / "data")]) == 2
    assert words in " ".join(capsys.readouterr().err.split())
    assert not (tmp_path / "data").exists()


@of_generation
def test_no_directory_is_replaced_by_a_data_set(
    world: World, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["filter", str(world.directory), "--to", str(tmp_path)]) == 2
    assert f"{tmp_path}: exists already" in capsys.readouterr().err


@of_generation
def test_samples_of_other_prompts_are_not_filtered(
    world: World, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    prompts = Path(json.loads((world.directory / "resolved.json").read_text())["data"]["prompts"])
    before = prompts.read_text()
    prompts.write_text(before + json.dumps({"prompt": "zz>"}) + "\n")
    try:
        assert main(["filter", str(world.directory), "--to", str(tmp_path / "data")]) == 2
    finally:
        prompts.write_text(before)
    assert "has changed" in capsys.readouterr().err
