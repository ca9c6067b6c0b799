"""Remarks on valid data, with row numbers, and the refusal of data of which nothing is left."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
from recipe_dir import OFFLINE_DPO, RecipeDir, refused, tokenizer

from orchestrator.cli.main import main
from orchestrator.config import load
from orchestrator.driver.assembly import Material
from orchestrator.errors import BadInput
from orchestrator.preflight.data_files import read_all, tokens_of

Golden = Callable[[str, str], None]


PAIR = {"prompt": "1+1=", "chosen": "2", "rejected": "3"}
GOOD, BAD = ({"prompt": "1+1=", "completion": str(answer), "label": answer == 2} for answer in (2, 3))
KTO: Mapping[str, str | None] = {"data": "{dataset: ./feedback.jsonl}", "reward": None}


def notes(capsys: pytest.CaptureFixture[str], recipe: str = "recipe.yaml") -> list[str]:
    """Return the remarks of `rlhf validate` on a valid recipe."""
    code = main(["validate", recipe])
    printed = capsys.readouterr()
    assert (code, printed.err) == (0, "")
    return [line.removeprefix("    note: ") for line in printed.out.splitlines() if line.startswith("    note: ")]


def test_b33_equal_pairs_may_be_left_out(
    recipe_dir: RecipeDir, golden: Golden, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [{"prompt": f"{i}+1=", "chosen": f"{i + 1}", "rejected": "0"} for i in range(-1, 5)]
    recipe_dir.jsonl("pairs.jsonl", rows)
    recipe_dir.recipe({**OFFLINE_DPO, "data": "{dataset: ./pairs.jsonl, equal_pairs: drop}"})
    remark = "dropped (data.equal_pairs): `chosen` and `rejected` are equal, so there is no preference (row 1)"
    assert notes(capsys) == [f"data.dataset: {remark}"]
    recipe_dir.jsonl("pairs.jsonl", rows[:1] * 5)
    refused("recipe.yaml", "b33-nothing-left", golden, capsys)


def test_a_rejected_answer_without_text_is_noted(recipe_dir: RecipeDir, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [{"prompt": f"{i}+1=", "chosen": f"{i + 1}", "rejected": "0"} for i in range(4)]
    recipe_dir.jsonl("pairs.jsonl", [*rows, {"prompt": "4+1=", "chosen": "5", "rejected": ""}])
    recipe_dir.recipe(OFFLINE_DPO)
    assert notes(capsys) == ["data.dataset: 1 of 5 rows reject an answer without text: row 5"]


def test_b37_prompts_that_are_too_long(
    recipe_dir: RecipeDir, golden: Golden, capsys: pytest.CaptureFixture[str]
) -> None:
    tokenizer()
    recipe_dir.jsonl("prompts.jsonl", [{"prompt": "1+" * i + "1=", "solution": "2"} for i in (1, 9, 2, 10, 3)])
    recipe_dir.recipe({"rollout": "{max_prompt_length: 19}"})
    assert notes(capsys) == [
        "data.prompts: 2 of 5 rows are dropped: their prompt is longer than 19 tokens (rollout.max_prompt_length): "
        "rows 2, 4"
    ]
    kept = read_all(load("recipe.yaml").stages[0], tokens_of("./model"))["prompts"].rows
    assert [row.id for row in kept] == ["prompts.jsonl:1", "prompts.jsonl:3", "prompts.jsonl:5"]
    recipe_dir.recipe({"rollout": "{max_prompt_length: 3}"})
    refused("recipe.yaml", "b37-all-too-long", golden, capsys)


def test_b37_a_run_measures_all_rows_and_its_steps_are_of_those_that_fit(recipe_dir: RecipeDir) -> None:
    tokenizer()
    rows = [{**PAIR, "prompt": f"{i}+1="} for i in range(3)] + [{**PAIR, "prompt": "1+" * 20}] * 3
    recipe_dir.jsonl("pairs.jsonl", rows)
    algorithm = "{type: dpo, batch_size: 2, num_train_epochs: 2}"
    recipe_dir.recipe({**OFFLINE_DPO, "data": "{dataset: ./pairs.jsonl, max_length: 20}", "algorithm": algorithm})
    material = Material.read(load("recipe.yaml").stages[0])
    assert [example.prompt.id for example in material.examples] == ["pairs.jsonl:1", "pairs.jsonl:2", "pairs.jsonl:3"]
    assert material.max_steps == 3  # two epochs of three rows, two a step


def test_b38_pairs_that_are_equal_after_truncation(
    recipe_dir: RecipeDir, golden: Golden, capsys: pytest.CaptureFixture[str]
) -> None:
    tokenizer()
    long = {"prompt": "1+1=", "chosen": "1" * 30 + "2", "rejected": "1" * 30 + "3"}
    early = {"prompt": "1+1=", "chosen": "2" + "1" * 30, "rejected": "3"}
    whole = [{**PAIR, "prompt": f"{i}+1="} for i in range(3)]
    recipe_dir.jsonl("pairs.jsonl", [long, *whole, early, {**PAIR, "prompt": "1+" * 20}])
    recipe_dir.recipe({**OFFLINE_DPO, "data": "{dataset: ./pairs.jsonl, max_length: 20}"})
    assert notes(capsys) == [
        "data.dataset: 1 of 6 rows are dropped: their prompt is longer than 20 tokens (data.max_length): row 6",
        "data.dataset: 2 of 6 rows are longer than 20 tokens (data.max_length) and lose the end of a completion: "
        "rows 1, 5",
        "data.dataset: 1 of 6 rows have no preference: truncated to 20 tokens (data.max_length), their completions are "
        "equal: row 1",
    ]
    recipe_dir.jsonl("pairs.jsonl", [{**long, "prompt": f"{i}+1="} for i in range(4)])
    refused("recipe.yaml", "b38-all-equal-when-cut", golden, capsys)


def test_rows_that_the_models_positions_cut_are_told_apart_from_those_that_a_setting_cuts(
    recipe_dir: RecipeDir, capsys: pytest.CaptureFixture[str]
) -> None:
    tokenizer()
    shape = Path("model", "config.json")
    shape.write_text(json.dumps({**json.loads(shape.read_text()), "max_position_embeddings": 20}))
    rows = [{**PAIR, "prompt": f"{i}+1="} for i in range(3)]
    recipe_dir.jsonl("pairs.jsonl", [*rows, {"prompt": "1+1=", "chosen": "2" * 30, "rejected": "3"}])
    recipe_dir.recipe(OFFLINE_DPO)
    assert notes(capsys) == [
        "data.dataset: 1 of 4 rows are longer than 20 tokens (the model's positions) and lose the end of a completion: "
        "row 4"
    ]


def test_b40_b41_repeated_and_contradicting_pairs(recipe_dir: RecipeDir, capsys: pytest.CaptureFixture[str]) -> None:
    other = {"prompt": "2+2=", "chosen": "4", "rejected": "5"}
    against = {"prompt": "1+1= ", "chosen": "3", "rejected": "2\n"}  # to a reader the opposite of PAIR
    recipe_dir.jsonl("pairs.jsonl", [PAIR, other, {**PAIR, "source": "x"}, against, PAIR])
    recipe_dir.recipe(OFFLINE_DPO)
    assert notes(capsys) == [
        "data.dataset: 2 of 5 rows repeat an earlier one: rows 3 and 1, 5 and 1",
        "data.dataset: 2 of 5 rows contradict an earlier one, and the two cancel out: rows 4 and 1, 5 and 4",
    ]
    recipe_dir.jsonl("feedback.jsonl", [GOOD, BAD, {**GOOD, "label": False}])
    recipe_dir.recipe({**KTO, "algorithm": "{type: kto, batch_size: 2, desirable_weight: 2.0}"})
    assert notes(capsys) == [
        "data.dataset: 1 of 3 rows contradict an earlier one, and the two cancel out: rows 3 and 1"
    ]


def test_b42_held_out_prompts_that_are_trained_on(recipe_dir: RecipeDir, capsys: pytest.CaptureFixture[str]) -> None:
    recipe_dir.jsonl("held.jsonl", [{"prompt": text, "solution": "1"} for text in ("7+7=", " 3+1=", "8+8=", "5+1=")])
    recipe_dir.recipe({"data": "{prompts: ./prompts.jsonl, eval_prompts: ./held.jsonl}"})
    assert notes(capsys) == ["data.eval_prompts: 2 of 4 held-out prompts are also trained on: rows 2, 4"]


def test_b47_special_tokens_in_a_text(
    recipe_dir: RecipeDir, golden: Golden, capsys: pytest.CaptureFixture[str]
) -> None:
    tokenizer()
    forged = {"prompt": "1+1=<eos>2+2=", "solution": "2"}
    recipe_dir.jsonl("prompts.jsonl", [{"prompt": f"{i}+1=", "solution": "1"} for i in range(4)] + [forged])
    for policy, outcome in (
        ("keep", "encoded as special tokens"),
        ("drop", "dropped (data.special_tokens)"),
    ):
        recipe_dir.recipe({"data": f"{{prompts: ./prompts.jsonl, special_tokens: {policy}}}"})
        what = "1 of 5 rows contain special tokens as text (<eos>)"
        assert notes(capsys) == [f"data.prompts: {what}; {outcome}: row 5"]
    recipe_dir.recipe({"data": "{prompts: ./prompts.jsonl, special_tokens: fail}"})
    refused("recipe.yaml", "b47-special-tokens", golden, capsys)
    Path("model/tokenizer.json").write_text("{}")
    refused("recipe.yaml", "b47-unknown-tokenizer", golden, capsys)


# ------------------------------------------------------------------------------------------------ several files

ROUNDS = "{type: dpo, prompts_per_step: 3, num_generations: 2, max_steps: 2}"
TWO_FILES = "{prompts: [./prompts.jsonl, ./more.jsonl]}"


def test_the_prompts_of_several_files_are_one_set(recipe_dir: RecipeDir, capsys: pytest.CaptureFixture[str]) -> None:
    recipe_dir.jsonl("more.jsonl", [{"prompt": f"{i}+2=", "solution": f"{i + 2}", "level": 1} for i in range(5)])
    recipe_dir.recipe({"data": TWO_FILES})
    assert notes(capsys) == []
    material = Material.read(load("recipe.yaml").stages[0])
    assert material.sizes("prompts") == (8, 5)
    assert [prompt.id for prompt in material.prompts[7:9]] == ["prompts.jsonl:8", "more.jsonl:1"]
    assert {tuple(prompt.columns) for prompt in material.prompts} == {("solution", "level")}


def test_a_row_that_no_reward_can_score_is_found_in_its_file(
    recipe_dir: RecipeDir, golden: Golden, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe_dir.jsonl("more.jsonl", [{"prompt": "1+2=", "solution": "3"}, {"prompt": "2+2=", "solution": ""}])
    recipe_dir.recipe({"data": TWO_FILES})
    refused("recipe.yaml", "bad-row-of-the-second-file", golden, capsys)


def test_a_file_with_fewer_prompts_than_its_round_samples(
    recipe_dir: RecipeDir, golden: Golden, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe_dir.jsonl("more.jsonl", [{"prompt": f"{i}+2=", "solution": f"{i + 2}"} for i in range(5)])
    recipe_dir.recipe({"data": TWO_FILES, "algorithm": ROUNDS, "rounds": "{prompts: files, prompts_per_step: [3, 6]}"})
    refused("recipe.yaml", "round-larger-than-its-file", golden, capsys)
    recipe_dir.recipe({"data": TWO_FILES, "algorithm": ROUNDS, "rounds": "{prompts: files, prompts_per_step: [6, 5]}"})
    assert notes(capsys) == []


def test_a_run_counts_its_disjoint_prompts_as_well(recipe_dir: RecipeDir) -> None:
    recipe_dir.recipe({"algorithm": ROUNDS, "rounds": "{prompts: disjoint, prompts_per_step: [4, 5]}"})
    with pytest.raises(BadInput, match="the rounds sample 9, none of them twice"):
        Material.read(load("recipe.yaml").stages[0])
