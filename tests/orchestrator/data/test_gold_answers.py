"""Gold answers of prompt files: read only where they are wanted, and checked like other completions."""

from __future__ import annotations

from typing import Any

import pytest
from recipe_dir import RecipeDir

from orchestrator.config import load
from orchestrator.data import read_prompts
from orchestrator.errors import BadInput
from orchestrator.preflight.data_files import read_source

QUESTION = [{"role": "user", "content": "1+1="}]
ANSWER = [{"role": "assistant", "content": "2"}]


def read(recipe_dir: RecipeDir, *rows: object, gold: Any = "add") -> list[object]:
    recipe_dir.jsonl("p.jsonl", list(rows))
    return [prompt.gold for prompt in read_prompts("p.jsonl", gold=gold)]


def test_the_answer_is_the_column_chosen_or_completion(recipe_dir: RecipeDir) -> None:
    rows = (
        {"prompt": "1+1=", "completion": "2"},
        {"prompt": "1+1=", "chosen": "2", "rejected": "3"},
        {"prompt": QUESTION, "completion": ANSWER},
        {"chosen": [*QUESTION, *ANSWER], "rejected": [*QUESTION, {"role": "assistant", "content": "3"}]},
    )
    assert read(recipe_dir, *rows) == ["2", "2", ANSWER, ANSWER]
    assert read(recipe_dir, *rows, gold="never") == [None] * 4


def test_a_row_may_lack_its_answer_unless_it_is_always_chosen(recipe_dir: RecipeDir) -> None:
    rows = ({"prompt": "1+1=", "completion": "2"}, {"prompt": "2+2=", "completion": None})
    assert read(recipe_dir, *rows) == ["2", None]
    with pytest.raises(BadInput, match=r"p\.jsonl:2.*no gold answer"):
        read(recipe_dir, *rows, gold="chosen")
    with pytest.raises(BadInput, match="no gold answer"):
        read(recipe_dir, rows[1])


@pytest.mark.parametrize(
    ("row", "wrong"),
    [
        ({"prompt": "1+1=", "completion": " "}, "`completion` is empty"),
        ({"prompt": QUESTION, "completion": "2"}, "`prompt` is a list of messages and `completion` text"),
        ({"prompt": QUESTION, "completion": [*ANSWER, *QUESTION, *ANSWER]}, "messages of users or tools"),
    ],
)
def test_an_answer_that_cannot_be_used_is_a_problem(recipe_dir: RecipeDir, row: object, wrong: str) -> None:
    with pytest.raises(BadInput, match=wrong):
        read(recipe_dir, row)


@pytest.mark.parametrize(("gold", "expected"), [("never", None), ("add", "2"), ("chosen", "2")])
def test_the_recipe_decides_whether_answers_are_used(recipe_dir: RecipeDir, gold: str, expected: str | None) -> None:
    rows = [{"prompt": f"{i}+{2 - i}=", "completion": "2", "solution": "2"} for i in range(3)]
    recipe_dir.jsonl("prompts.jsonl", rows)
    recipe_dir.jsonl("eval.jsonl", [{"prompt": "2+2=", "completion": "4", "solution": "4"}])
    recipe_dir.recipe(
        {
            "data": "{prompts: ./prompts.jsonl, eval_prompts: ./eval.jsonl}",
            "algorithm": f"{{type: dpo, prompts_per_step: 3, max_steps: 3, pairs: {{gold: {gold}}}}}",
        }
    )
    (config,) = load("recipe.yaml").stages
    trained, held_out = (read_source(config, name, None) for name in ("prompts", "eval_prompts"))
    assert trained is not None
    assert held_out is not None
    assert {prompt.gold for prompt in trained.prompts} == {expected}
    assert {prompt.gold for prompt in held_out.prompts} == {None}
