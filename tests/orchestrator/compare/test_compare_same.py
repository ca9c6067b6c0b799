"""Settings that runs have in common: the prompts of methods on samples and on pairs, and a gold scorer in every run."""

from __future__ import annotations

from pathlib import Path

import pytest
from recipe_dir import OFFLINE_DPO, RecipeDir

from orchestrator.compare.recipe import Comparison, load_comparison
from orchestrator.compare.runs import remarks_on
from orchestrator.compare.same import scorer_names
from orchestrator.config import load
from orchestrator.errors import BadInput

COMPARE = """\
name: two
seeds: [0]
tasks:
  - name: adding
    gold: math
    methods: [{name: GRPO, recipe: grpo.yaml}, {name: offline DPO, recipe: dpo.yaml}]
"""
PAIRS = [{"prompt": f"{i}+1=", "chosen": f"{i + 1}", "rejected": "0"} for i in range(8)]


@pytest.fixture
def comparison(recipe_dir: RecipeDir) -> RecipeDir:
    recipe_dir.jsonl("heldout.jsonl", [{"prompt": "9+9=", "solution": "18"}])
    Path("compare.yaml").write_text(COMPARE)
    return recipe_dir


def written(comparison: RecipeDir, prompts: str, dataset: str, **changes: str) -> Comparison:
    sampled = f"{{prompts: {prompts}, eval_prompts: ./heldout.jsonl}}"
    offline = f"{{dataset: {dataset}, eval_prompts: ./heldout.jsonl}}"
    comparison.recipe({"data": sampled}, name="grpo.yaml")
    comparison.recipe({**OFFLINE_DPO, "data": offline, "reward": "[{type: math}]", **changes}, name="dpo.yaml")
    return load_comparison("compare.yaml")


def test_the_same_file_is_the_same_prompts(comparison: RecipeDir) -> None:
    assert remarks_on(written(comparison, "./pairs.jsonl", "./pairs.jsonl")) == {"adding": []}


def test_equal_prompts_in_two_files_need_no_remark(comparison: RecipeDir) -> None:
    assert remarks_on(written(comparison, "./prompts.jsonl", "./pairs.jsonl")) == {"adding": []}


def test_a_partial_overlap_is_remarked_on(comparison: RecipeDir) -> None:
    comparison.jsonl("more.jsonl", [{"prompt": f"{i}+1="} for i in range(4, 14)])
    (remark,) = remarks_on(written(comparison, "./more.jsonl", "./pairs.jsonl"))["adding"]
    assert remark == "Of the 8 prompts of the pairs and the 10 prompts that are sampled for, 4 are the same."


def test_without_a_prompt_in_common_the_remark_names_the_fix(comparison: RecipeDir) -> None:
    comparison.jsonl("others.jsonl", [{"prompt": f"{i}*3="} for i in range(8)])
    (remark,) = remarks_on(written(comparison, "./others.jsonl", "./pairs.jsonl"))["adding"]
    assert "0 are the same; set data.prompts: ./pairs.jsonl" in remark


def test_conversations_without_a_prompt_column_are_the_same_prompts(comparison: RecipeDir) -> None:
    def turns(row: dict[str, str], side: str) -> list[dict[str, str]]:
        return [{"role": "user", "content": row["prompt"]}, {"role": "assistant", "content": row[side]}]

    comparison.jsonl("implicit.jsonl", [{side: turns(row, side) for side in ("chosen", "rejected")} for row in PAIRS])
    users = [{"prompt": [{"role": "user", "content": row["prompt"]}]} for row in PAIRS]
    comparison.jsonl("users.jsonl", users)  # type: ignore[arg-type]
    assert remarks_on(written(comparison, "./implicit.jsonl", "./implicit.jsonl")) == {"adding": []}
    assert remarks_on(written(comparison, "./users.jsonl", "./implicit.jsonl")) == {"adding": []}


def test_other_splits_of_one_source_are_refused(comparison: RecipeDir) -> None:
    Path("compare.yaml").write_text(COMPARE.replace("dpo.yaml}", "dpo.yaml}, {name: twin, recipe: twin.yaml}"))
    data = "{prompts: ./prompts.jsonl, eval_prompts: ./heldout.jsonl, split: other}"
    comparison.recipe({"data": data}, name="twin.yaml")
    with pytest.raises(BadInput, match=r"data\.prompts is .*prompts.jsonl in GRPO and .*\(split other\) in twin"):
        written(comparison, "./prompts.jsonl", "./pairs.jsonl")


def test_a_missing_gold_scorer_is_found_before_anything_runs(comparison: RecipeDir) -> None:
    with pytest.raises(BadInput, match="gold = math, and offline DPO has no such scorer"):
        written(comparison, "./prompts.jsonl", "./pairs.jsonl", reward="[{type: refusal}]")


def test_names_of_scorers(recipe_dir: RecipeDir) -> None:
    rewards = (
        "[{type: math, weight: 0.0}, {type: function, function: 'mine.py:words'}, "
        "{type: model, path: runs/judge/model}, {type: model, path: acme/Reward-8B, weight: 0.0}]"
    )
    config = load(recipe_dir.recipe({"reward": rewards})).stages[-1]
    assert scorer_names(config.reward) == ["math", "words", "judge", "Reward-8B"]
    assert scorer_names(config.reward, trained_on=True) == ["words", "judge"]
