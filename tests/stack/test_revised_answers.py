"""Answers that real engines sample, criticise and revise, as text and as conversations, and DPO on the pairs."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from attempts import Run

from orchestrator.generation.data_set import read_summary

pytestmark = [pytest.mark.stack, pytest.mark.long]

PRINCIPLES = """
principles:
  - {name: order, critique: ab, revision: cd}
  - {name: letters, critique: ef, revision: gh}
templates:
  critique: "{prompt}{answer}{critique_request}"
  revision: "{prompt}{answer}{critique_request}{critique}{revision_request}"
"""


@pytest.mark.parametrize("family", ["qwen2", "llama"])
def test_a_model_learns_from_its_own_revisions(
    finished: Callable[..., Run], family: str, request: pytest.FixtureRequest
) -> None:
    directory: Path = request.getfixturevalue(family)
    (directory / "principles.yaml").write_text(PRINCIPLES)
    preferred = finished("revised", directory)
    assert preferred.exit["cause"] == "completed"
    assert preferred.figures("loss")[-1] < preferred.figures("loss")[0]
    answers, critiques, revisions = (
        directory / "runs" / name / "data" for name in ("answers", "critiques", "revisions")
    )
    asked = pq.read_table(answers / "rows.parquet").to_pylist()
    for row in pq.read_table(critiques / "rows.parquet").to_pylist():
        stage, _, number = row["from_row"].rpartition(":")
        answer = asked[int(number) - 1]
        assert stage == "answers/rows.parquet"
        assert (row["prompt"], row["prompt_id"]) == (answer["prompt"], answer["prompt_id"])
        said = answer["completion"]
        assert row["criticised"] == (said if family == "qwen2" else said[0]["content"])
    pairs = pq.read_table(revisions / "pairs.parquet").to_pylist()
    summary = read_summary(revisions)
    assert summary is not None
    assert len(pairs) == summary["pairs"] > 32
    assert isinstance(pairs[0]["chosen"], str if family == "qwen2" else list)
    assert {row["principle"] for row in pairs} == {"order", "letters"}
