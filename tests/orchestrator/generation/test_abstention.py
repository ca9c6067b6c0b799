"""Pairs of completions and abstentions, by what a model knows."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError
from test_rows import config, part

from orchestrator.data import read_examples
from orchestrator.generation.data_set import DataSet, read_summary
from workers.config import AbstentionConfig
from workers.types import Prompt

IDK = AbstentionConfig().answer


def written(directory: Path, texts: dict[str, list[str]], scores: list[float], **settings: Any) -> Path:
    target = directory / "data" / "rows.parquet"
    prompts = [Prompt(id=id, text=f"question {id}") for id in texts]
    file = part(directory / "1.parquet", texts, scores)
    DataSet(config(rows="abstention", **settings), prompts).write([file], target)
    return target


def test_what_is_known_is_answered_and_what_is_not_is_abstained_from(tmp_path: Path) -> None:
    texts = {"p:1": ["4", "4", "4", "5"], "p:2": ["7", "8", "8", "9"], "p:3": ["1", "2", "1", "2"]}
    target = written(tmp_path, texts, [1, 1, 1, 0, 0, 0, 0, 0, 1, 0, 1, 0])
    known, unknown = read_examples(str(target), algorithm="dpo")
    assert (known.prompt.text, known.completions) == ("question p:1", ("4", IDK))
    assert (unknown.prompt.text, unknown.completions) == ("question p:2", (IDK, "8"))
    assert (known.prompt.columns["known"], known.prompt.columns["right"]) == (True, 0.75)
    summary = read_summary(target.parent)
    assert summary is not None
    assert (summary["rows"], summary["dropped"]["unsure"]) == (2, 2)


def test_limits_are_settings(tmp_path: Path) -> None:
    settings = {"abstention": {"known_from": 0.9, "unknown_up_to": 0.5, "answer": "?"}}
    target = written(tmp_path, {"p:1": ["4", "5"], "p:2": ["4", "4"]}, [1, 0, 1, 1], **settings)
    first, second = read_examples(str(target), algorithm="dpo")
    assert (first.completions, second.completions) == (("?", "5"), ("4", "?"))


def test_an_abstention_is_not_paired_with_itself(tmp_path: Path) -> None:
    target = written(tmp_path, {"p:1": [IDK, f" {IDK}"], "p:2": ["4", IDK]}, [0, 0, 0, 0])
    (example,) = read_examples(str(target), algorithm="dpo")
    assert example.prompt.text == "question p:2"


def test_limits_that_meet_are_refused() -> None:
    with pytest.raises(ValidationError, match="set unknown_up_to below known_from"):
        AbstentionConfig(known_from=0.5, unknown_up_to=0.5)
