"""Warnings of the audit before a run: which, for which runs, and how much is looked for."""

from __future__ import annotations

from typing import Any

import pytest
from recipe_dir import OFFLINE_DPO, RecipeDir

from benchmarks.planted_preferences import World, swap
from orchestrator.audit import before_run
from orchestrator.audit.before_run import audit_remarks
from orchestrator.config import load
from orchestrator.preflight.data_files import read_all

ROWS = [dict(row, annotator="a", source="s") for row in World(seed=3, completion_words=(30, 60)).rows(30)]


def remarks_of(recipe_dir: RecipeDir, rows: list[dict[str, Any]], **changes: Any) -> list[str]:
    recipe_dir.jsonl("pairs.jsonl", rows)
    config = load(recipe_dir.recipe({**OFFLINE_DPO, **changes})).stages[-1]
    return audit_remarks(config, read_all(config, None))


def test_clean_pairs_have_no_remark(recipe_dir: RecipeDir) -> None:
    assert remarks_of(recipe_dir, ROWS) == []


def test_warnings_that_validate_has_not_given_are_remarks(recipe_dir: RecipeDir) -> None:
    """Exact repeats are remarks of `rlhf validate`; objectives are compared by the audit alone."""
    helpful = [{**row, "objective": "helpful"} for row in ROWS]
    harmless = [{**swap(row), "objective": "harmless"} for row in ROWS]
    (remark,) = remarks_of(recipe_dir, [*helpful, *harmless, helpful[0]])
    assert remark.startswith(
        "data.dataset: audit: the objectives `helpful` and `harmless` decide 30 of 30 shared comparisons (100%) in "
        "opposite ways (rows 31 and 1, 32 and 2,"
    )


def test_a_run_on_prompts_is_not_audited(recipe_dir: RecipeDir) -> None:
    config = load(recipe_dir.recipe()).stages[-1]
    assert audit_remarks(config, read_all(config, None)) == []


def test_of_many_rows_only_what_is_cheap_is_looked_for(recipe_dir: RecipeDir, monkeypatch: pytest.MonkeyPatch) -> None:
    near = {**ROWS[0], "chosen": ROWS[0]["chosen"].upper()}
    low = [{**row, "score_chosen": 1, "score_rejected": 2} for row in ROWS[1:3]]
    rows = [*ROWS, near, *({**row, "prompt": f"again {row['prompt']}"} for row in low)]
    names = ("nearly repeat", "lower score")
    assert [[name in line for name in names] for line in remarks_of(recipe_dir, rows)] == [[True, False], [False, True]]
    monkeypatch.setattr(before_run, "HEAVY_ROWS", len(rows) - 1)
    scored, left_out = remarks_of(recipe_dir, rows)
    assert "lower score" in scored
    assert left_out == (
        "data.dataset: audit: near repeats and poison were not looked for in 33 rows, more than 32: "
        "rlhf audit ./pairs.jsonl"
    )
