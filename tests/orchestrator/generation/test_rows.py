"""Rows of a generated data set: formats that training reads, columns of the prompts, one type per column."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from orchestrator.config import RunConfig
from orchestrator.data import read_examples
from orchestrator.errors import BadInput
from orchestrator.generation.data_set import DataSet, read_summary
from orchestrator.generation.rows import Rows
from workers.types import Prompt
from workers.writer import as_parquet

CHAT = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "2+2="}]


def config(**algorithm: Any) -> RunConfig:
    return RunConfig.model_validate(
        {
            "name": "run",
            "model": {"path": "m"},
            "data": {"prompts": "p.jsonl"},
            "reward": ({"type": "math"},),
            "algorithm": {"type": "generate", "num_generations": 2, **algorithm},
        }
    )


def part(path: Path, texts: dict[str, list[str]], scores: list[float] | None = None) -> Path:
    flat = [(id, sample, text) for id, own in texts.items() for sample, text in enumerate(own)]
    count = len(flat)
    content = as_parquet(
        {
            "prompt_id": [id for id, _, _ in flat],
            "sample": [sample for _, sample, _ in flat],
            "completion": [text for _, _, text in flat],
            "tokens": [3] * count,
            "finish": ["stop"] * count,
            "repetition": [0.0] * count,
            "version": [0] * count,
            "seed": list(range(count)),
            "score": scores or [1.0] * count,
            "score_math": scores or [1.0] * count,
        }
    )
    path.write_bytes(content)
    return path


def test_conversations_are_read_back_as_demonstrations(tmp_path: Path) -> None:
    tools = [{"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}]
    prompts = [Prompt(id="p:1", text=CHAT, columns={"solution": "4", "tools": tools})]
    target = tmp_path / "data" / "rows.parquet"
    DataSet(config(), prompts).write([part(tmp_path / "1.parquet", {"p:1": ["4", "it is 4"]})], target)
    first, second = read_examples(str(target), algorithm="sft")
    assert first.prompt.text == CHAT
    assert [list(example.completions[0]) for example in (first, second)] == [
        [{"role": "assistant", "content": "4"}],
        [{"role": "assistant", "content": "it is 4"}],
    ]
    assert first.prompt.columns["solution"] == "4"
    assert '"name": "f"' in first.prompt.columns["tools"]


def test_ratings_are_read_back_best_first(tmp_path: Path) -> None:
    prompts = [Prompt(id="p:1", text="2+2="), Prompt(id="p:2", text="1+1=")]
    target = tmp_path / "data" / "rows.parquet"
    file = part(tmp_path / "1.parquet", {"p:1": ["5", "4"], "p:2": ["2", " 2 "]}, [0.0, 1.0, 1.0, 1.0])
    DataSet(config(rows="ratings"), prompts).write([file], target)
    (example,) = read_examples(str(target), algorithm="dpo")
    assert (example.completions, example.scores) == (("4", "5"), (1.0, 0.0))
    summary = read_summary(target.parent)
    assert summary is not None
    assert summary["dropped"] == {"duplicate": 1, "alone": 1}


def test_columns_of_other_formats_do_not_change_the_format(tmp_path: Path) -> None:
    columns = {"chosen": "a", "rejected": "b", "label": True, "score": 3, "topic": "sums"}
    prompts = [Prompt(id="p:1", text="2+2=", columns=columns)]
    target = tmp_path / "data" / "rows.parquet"
    DataSet(config(), prompts).write([part(tmp_path / "1.parquet", {"p:1": ["4", "5"]})], target)
    assert len(read_examples(str(target), algorithm="sft")) == 2
    row = pq.read_table(target).to_pylist()[0]
    assert (row["topic"], row["score"]) == ("sums", 1.0)
    assert not {"chosen", "rejected", "label"} & set(row)


def test_values_of_different_types_are_written_as_json(tmp_path: Path) -> None:
    prompts = [Prompt(id="p:1", text="a", columns={"x": 1, "y": 2}), Prompt(id="p:2", text="b", columns={"x": [2]})]
    target = tmp_path / "data" / "rows.parquet"
    DataSet(config(), prompts).write([part(tmp_path / "1.parquet", {"p:1": ["c"], "p:2": ["d"]})], target)
    assert [(row["x"], row["y"]) for row in pq.read_table(target).to_pylist()] == [("1", 2), ("[2]", None)]


def test_texts_and_conversations_do_not_mix() -> None:
    with pytest.raises(BadInput, match="1 of 2 prompts are conversations"):
        Rows(config(), [Prompt(id="p:1", text="a"), Prompt(id="p:2", text=CHAT)])


def test_a_missing_library_is_named_before_anything_is_sampled(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("orchestrator.generation.data_set.find_spec", lambda name: None)
    with pytest.raises(BadInput) as raised:
        DataSet(config(filters={"languages": ("en",)}), [Prompt(id="p:1", text="a")])
    assert [problem.where for problem in raised.value.problems] == [
        "algorithm.duplicates.near",
        "algorithm.filters.languages",
    ]
    DataSet(config(duplicates={"near": None}), [Prompt(id="p:1", text="a")])


def test_per_prompt_keeps_the_best(tmp_path: Path) -> None:
    target = tmp_path / "data" / "rows.parquet"
    file = part(tmp_path / "1.parquet", {"p:1": ["a", "b"], "p:2": ["c", "d"]}, [0.0, 1.0, 0.5, 0.5])
    prompts = [Prompt(id="p:1", text="x"), Prompt(id="p:2", text="y")]
    DataSet(config(per_prompt=1), prompts).write([file], target)
    assert pq.read_table(target).column("completion").to_pylist() == ["b", "c"]


def test_nothing_left_is_an_error_with_the_reasons(tmp_path: Path) -> None:
    file = part(tmp_path / "1.parquet", {"p:1": ["a", "b"]}, [0.0, 0.0])
    target = tmp_path / "data" / "rows.parquet"
    with pytest.raises(BadInput, match="no row is left of 2 completions") as raised:
        DataSet(config(filters={"min_score": 0.5}), [Prompt(id="p:1", text="x")]).write([file], target)
    assert "dropped by score: 2" in str(raised.value)
    assert not target.parent.exists()
