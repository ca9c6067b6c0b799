"""Large sources: rows in files are those in memory, in the same order; they are read once, and none stays in memory."""

from __future__ import annotations

import gc
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow
import pytest
from fakes import FakeEncoder
from pyarrow import parquet
from recipe_dir import OFFLINE_DPO, RecipeDir, tokenizer

from orchestrator.audit.before_run import audit_remarks
from orchestrator.cluster.base import wait
from orchestrator.cluster.local import LocalGang
from orchestrator.config import RunConfig, load
from orchestrator.data.stored import OFFSETS, ROWS, StoredRows
from orchestrator.driver.assembly import Material, build_source
from orchestrator.driver.large_data import FOLDER, LARGE_BYTES, digest_of, write_source
from orchestrator.errors import BadInput
from orchestrator.preflight.data_files import read_all, remarks, tokens_of
from orchestrator.rundir.provenance import compare, describe
from workers.types import Example

NUM_ROWS = 240
NOTE = "n" * 20_000  # a column that makes the file large
EVALUATION = "eval_dataset: ./pairs.jsonl"


def pairs(count: int = NUM_ROWS) -> list[dict[str, Any]]:
    return [{"prompt": f"{i}+1=", "chosen": f"{i + 1}", "rejected": f"{i}", "note": NOTE} for i in range(count)]


def kto(count: int = NUM_ROWS) -> list[dict[str, Any]]:
    rows = [
        {"prompt": f"{i}+1=", "completion": f"{i + i % 2}", "label": i % 2 == 1, "note": NOTE} for i in range(count)
    ]
    return [*rows, {**rows[0], "note": "again"}]


def run_of(
    recipe_dir: RecipeDir, rows: Sequence[Any], algorithm: str = "dpo", further: str = "", **more: Any
) -> RunConfig:
    """Return a run on `rows`. `further`: keys of `data`, after a comma."""
    tokenizer()
    recipe_dir.jsonl("large.jsonl", list(rows))
    assert (recipe_dir.path / "large.jsonl").stat().st_size >= LARGE_BYTES
    data = f"{{dataset: ./large.jsonl{further}}}"
    return load(
        recipe_dir.recipe({**OFFLINE_DPO, "data": data, "algorithm": f"{{type: {algorithm}, batch_size: 7}}", **more})
    ).stages[0]


def in_memory(run: RunConfig) -> Material:
    sources = read_all(run, tokens_of(run.model.path))
    return Material(sources=sources, max_steps=Material.read(run).max_steps)


def batches(run: RunConfig, material: Material, steps: int) -> list[list[Any]]:
    """Return the prompts that the encoder gets in each step."""
    encoder = LocalGang("dataset", [FakeEncoder([])])
    source = build_source(run, None, material, {"dataset": encoder}, lambda step, chunk: None, None)  # type: ignore[arg-type]
    chunks = [next(iter(source.stream(step))) for step in range(steps)]
    return [[prompt for part in wait(chunk.experience) for prompt in part.prompts] for chunk in chunks]


@pytest.mark.parametrize(
    ("algorithm", "rows", "further"),
    [
        ("dpo", pairs(), f", {EVALUATION}"),
        ("dpo", [*pairs(), {"prompt": "5+1=", "chosen": "1", "rejected": "1 "}], ", equal_pairs: drop"),
        ("dpo", [{**row, "chosen": row["chosen"] + "<eos>"} if i % 9 else row for i, row in enumerate(pairs())],
         ", special_tokens: drop"),
        ("dpo", [{**row, "prompt": row["prompt"] * (1 + i % 3)} for i, row in enumerate(pairs())], ", max_length: 9"),
        ("kto", kto(), ""),
    ],
)  # fmt: skip
def test_rows_in_files_are_those_in_memory(
    recipe_dir: RecipeDir, algorithm: str, rows: list[Any], further: str
) -> None:
    run = run_of(recipe_dir, rows, algorithm, further)
    stored, memory = Material.read(run), in_memory(run)
    assert isinstance(stored.examples, StoredRows)
    assert not isinstance(memory.examples, StoredRows)
    assert list(stored.examples) == list(memory.examples)
    assert [stored.examples[i] for i in (0, -1, 3)] == [memory.examples[i] for i in (0, -1, 3)]
    assert stored.examples[3:9:2] == list(memory.examples[3:9:2])
    assert stored.sizes("dataset") == memory.sizes("dataset")
    assert batches(run, stored, stored.max_steps) == batches(run, memory, stored.max_steps)
    assert remarks(run, stored.sources) == remarks(run, memory.sources)
    assert audit_remarks(run, stored.sources) == audit_remarks(run, memory.sources)
    about = describe(run, stored.sources)
    assert about["data"] == describe(run, memory.sources)["data"]
    assert compare(about, describe(run, memory.sources)) == [], "a run may resume with the other"


def test_an_index_beyond_the_rows_is_an_error(recipe_dir: RecipeDir) -> None:
    examples = Material.read(run_of(recipe_dir, pairs())).examples
    with pytest.raises(IndexError):
        examples[NUM_ROWS]


def test_prompts_are_kept_in_files_too(recipe_dir: RecipeDir) -> None:
    rows = [
        {"prompt": f"{i}+1=", "solution": f"{i + 1}", "note": NOTE, **({"tag": 1} if i else {})}
        for i in range(NUM_ROWS)
    ]
    recipe_dir.jsonl("large.jsonl", list(rows))
    (run,) = load(recipe_dir.recipe({"data": "{prompts: ./large.jsonl}"})).stages
    material = Material.read(run)
    assert isinstance(material.prompts, StoredRows)
    assert list(material.prompts) == list(in_memory(run).prompts)
    assert material.prompts[0].columns["tag"] is None, "every prompt has the columns of all"
    recipe_dir.jsonl("large.jsonl", [*rows, {"prompt": "1+1=", "solution": {}}])
    with pytest.raises(BadInput, match=r"large\.jsonl:241"):
        Material.read(run)


def test_no_row_stays_in_memory(recipe_dir: RecipeDir) -> None:
    run = run_of(recipe_dir, pairs())
    material = Material.read(run)
    assert batches(run, material, 20)
    assert sum(1 for _ in material.examples) == NUM_ROWS
    gc.collect()
    alive = sum(isinstance(thing, Example) for thing in gc.get_objects())
    assert alive <= 14, "two batches of 7, which are encoded ahead"


def test_every_bad_row_is_refused_before_the_start(recipe_dir: RecipeDir) -> None:
    run = run_of(
        recipe_dir, [*pairs(), {"prompt": "2+2=", "chosen": "4"}, {"prompt": "", "chosen": "4", "rejected": "5"}]
    )
    with pytest.raises(BadInput) as caught:
        Material.read(run)
    assert [problem.where for problem in caught.value.problems] == ["./large.jsonl:241", "./large.jsonl:242"]
    assert all(problem.what and problem.fix for problem in caught.value.problems)
    assert list(Path("runs", FOLDER).glob("*")) == []


def test_rows_are_read_once(recipe_dir: RecipeDir, capfd: pytest.CaptureFixture[str]) -> None:
    run = run_of(recipe_dir, pairs())
    Material.read(run)
    assert "reading and checking all rows of ./large.jsonl, once" in capfd.readouterr().out
    other = run.model_copy(
        update={"name": "other", "seed": 3, "algorithm": run.algorithm.model_copy(update={"learning_rate": 1e-3})}
    )
    Material.read(other)
    assert capfd.readouterr().out == ""
    assert len(list(Path("runs", FOLDER).iterdir())) == 1


@pytest.mark.parametrize(
    "further", [", max_length: 5", ", equal_pairs: drop", ", special_tokens: drop", ", split: test"]
)
def test_other_settings_of_rows_are_other_rows(recipe_dir: RecipeDir, further: str) -> None:
    assert digest_of(run_of(recipe_dir, pairs()), "dataset") != digest_of(
        run_of(recipe_dir, pairs(), further=further), "dataset"
    )


def test_other_content_and_another_tokenizer_are_other_rows(recipe_dir: RecipeDir) -> None:
    first = digest_of(run_of(recipe_dir, pairs()), "dataset")
    changed = [*pairs()[:-1], {**pairs()[-1], "chosen": "7"}]
    assert digest_of(run_of(recipe_dir, changed), "dataset") != first
    run = run_of(recipe_dir, pairs())
    assert digest_of(run, "dataset") == first
    tokenizer(alphabet="0123456789")
    assert digest_of(run, "dataset") != first
    assert digest_of(run.model_copy(update={"evaluation": None, "policy": None}), "dataset") == digest_of(
        run, "dataset"
    )


def test_requests_of_another_constitution_or_seed_are_other_rows(recipe_dir: RecipeDir) -> None:
    def digest(critique: str, seed: int) -> str:
        principle = {"name": "order", "critique": critique, "revision": "Mend it."}
        Path("principles.yaml").write_text(json.dumps({"principles": [principle]}))
        algorithm = "{type: generate, rows: critique, constitution: principles.yaml}"
        keys = {"data": "{prompts: ./large.jsonl}", "algorithm": algorithm, "seed": str(seed)}
        return digest_of(load(recipe_dir.recipe(keys)).stages[0], "prompts")

    tokenizer()
    recipe_dir.jsonl("large.jsonl", pairs())
    digests = [digest("What is wrong?", 0), digest("What is missing?", 0), digest("What is wrong?", 1)]
    assert len({*digests}) == 3
    assert digest("What is wrong?", 0) == digests[0]


@pytest.mark.parametrize("name", [ROWS, OFFSETS])
def test_damaged_files_are_written_again(recipe_dir: RecipeDir, name: str) -> None:
    run = run_of(recipe_dir, pairs())
    rows = list(Material.read(run).examples)
    (file,) = Path("runs", FOLDER).glob(f"*/{name}")
    content = file.read_bytes()
    file.write_bytes(content[:-100])
    assert list(Material.read(run).examples) == rows
    assert file.read_bytes() == content


def test_a_source_that_changes_while_it_is_read_is_refused(recipe_dir: RecipeDir) -> None:
    run = run_of(recipe_dir, pairs())
    folder = Path("runs", FOLDER, digest_of(run, "dataset"))
    recipe_dir.jsonl("large.jsonl", [*pairs(), *pairs(1)])
    with pytest.raises(BadInput, match="changed while it was read"):
        write_source(run, "dataset", folder)
    assert not folder.exists()


def test_rows_that_json_would_change_stay_in_memory(recipe_dir: RecipeDir, capfd: pytest.CaptureFixture[str]) -> None:
    run_of(recipe_dir, pairs())
    columns = {key: [row[key] for row in pairs()] for key in ("prompt", "chosen", "rejected")}
    table = {
        **columns,
        "note": [os.urandom(12_000).hex() for _ in pairs()],
        "day": pyarrow.array([0] * NUM_ROWS, pyarrow.date32()),
    }
    parquet.write_table(pyarrow.table(table), "large.parquet")
    (run,) = load(recipe_dir.recipe({**OFFLINE_DPO, "data": "{dataset: ./large.parquet}"})).stages
    material = Material.read(run)
    assert not isinstance(material.examples, StoredRows)
    assert len(material.examples) == NUM_ROWS
    assert "the rows stay in memory: large.parquet:1 has a value of type date" in capfd.readouterr().out


def test_small_files_are_read_into_memory(recipe_dir: RecipeDir) -> None:
    (run,) = load(recipe_dir.recipe(OFFLINE_DPO)).stages
    assert not isinstance(Material.read(run).examples, StoredRows)
    assert not Path("runs", FOLDER).exists()


def test_an_error_of_the_disk_is_one_of_the_driver(recipe_dir: RecipeDir) -> None:
    run = run_of(recipe_dir, pairs())
    Path("runs").mkdir()
    Path("runs", FOLDER).touch()
    with pytest.raises(OSError, match=FOLDER):
        Material.read(run)
