"""Facts measured in data, checked by hand."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from recipe_dir import RecipeDir, tokenizer

from orchestrator.advise.facts import Check, Facts, measure
from orchestrator.advise.reading import read
from orchestrator.config import load
from orchestrator.evaluation.statistics import wilson

ROOT = Path(__file__).parents[3]
PAIR = {"prompt": "1+1=", "chosen": "22", "rejected": "3"}
LABEL = {"prompt": "1+1=", "completion": "2", "label": True}


def facts_of(
    recipe_dir: RecipeDir, *files: list[dict[str, Any]], model: str | None = None, verifiable: bool = False
) -> Facts:
    names = [f"data-{i}.jsonl" for i in range(len(files))]
    for name, rows in zip(names, files, strict=True):
        recipe_dir.jsonl(name, list(rows))
    return measure(read(names), model, verifiable=verifiable)


def test_comparisons_are_counted_once_and_both_ways(recipe_dir: RecipeDir) -> None:
    rated = {"prompt": "2+2=", "completions": ["4", "5", "6"], "ratings": [3, 1, 1]}  # 4 over 5, 4 over 6
    opposite = {"prompt": "1+1=", "chosen": "3", "rejected": "22"}
    facts = facts_of(recipe_dir, [PAIR, PAIR, opposite], [rated])
    assert (facts.pairs, facts.repeated, facts.contradictory, facts.prompts) == (3, 1, 1, 2)


def test_labels_demonstrations_and_prompts(recipe_dir: RecipeDir) -> None:
    bad = {**LABEL, "completion": "3", "label": False}
    demos = [{"prompt": f"{i}", "completion": "a"} for i in range(3)]
    facts = facts_of(recipe_dir, [LABEL, bad, {**bad, "completion": "4"}], demos, [{"prompt": "0"}, {"prompt": "x"}])
    assert (facts.good, facts.bad, facts.labels, facts.demonstrations) == (1, 2, 3, 3)
    assert facts.prompts == 5  # 1+1=, 0, 1, 2, x
    assert facts.pairs == 0


def test_pairs_without_a_prompt_column_have_no_prompts(recipe_dir: RecipeDir) -> None:
    facts = facts_of(recipe_dir, [{"chosen": "1+1= 2", "rejected": "1+1= 3"}])
    assert (facts.pairs, facts.prompts) == (1, 0)


def test_conflicts_between_objectives(recipe_dir: RecipeDir) -> None:
    opposite = {**PAIR, "chosen": "3", "rejected": "22"}
    both = [{**PAIR, "objective": "short"}, {**opposite, "objective": "right"}, {**PAIR, "prompt": "2+1="}]
    assert facts_of(recipe_dir, both).conflicts == 1
    assert facts_of(recipe_dir, [PAIR, opposite]).conflicts == 0


def test_labels_of_the_models_own_completions(recipe_dir: RecipeDir) -> None:
    rows = [{**LABEL, "prompt": f"{i}", "label": i % 10 > 0, "model": "org/Mine"} for i in range(200)]
    others = [{**row, "label": False, "model": "other"} for row in rows]
    assert facts_of(recipe_dir, [*rows, *others], model="mine").own_good == 0.9
    assert facts_of(recipe_dir, rows[:99], model="mine").own_good is None
    assert facts_of(recipe_dir, rows).own_good is None


def test_agreement_of_annotators(recipe_dir: RecipeDir) -> None:
    other_way = {**PAIR, "chosen": "3", "rejected": "22"}
    rows = [{**PAIR, "annotator": "a"}, {**PAIR, "annotator": "b"}, {**other_way, "annotator": "c"}]
    facts = facts_of(recipe_dir, [*rows, rows[0]])  # the copy is by the same annotator
    # a and b agree; a and c, b and c do not
    assert facts.agreement == wilson(1, 3)
    votes = facts_of(recipe_dir, [{**PAIR, "votes": [True, True, False, True]}])  # three of six pairs of votes agree
    assert votes.agreement == wilson(3, 6)


def test_repeated_rows_are_no_votes(recipe_dir: RecipeDir) -> None:
    assert facts_of(recipe_dir, [PAIR, PAIR, PAIR]).agreement is None


@pytest.mark.parametrize(("agreement", "flipped"), [(1.0, 0.0), (0.68, 0.2), (0.82, 0.1), (0.5, 0.5), (0.3, 0.5)])
def test_how_many_labels_are_wrong(agreement: float, flipped: float) -> None:
    # 0.2² + 0.8² = 0.68, 0.1² + 0.9² = 0.82; an agreement below one half is no better than chance
    facts = Facts(agreement=wilson(agreement * 1000, 1000))
    assert facts.flipped == pytest.approx(flipped, abs=1e-9)


def test_length_of_chosen_completions(recipe_dir: RecipeDir) -> None:
    rows = [{"prompt": f"{i}", "chosen": "ab" * (1 + (i < 3)), "rejected": "ab" * (2 - (i < 3))} for i in range(4)]
    same = {"prompt": "z", "chosen": "ab", "rejected": "cd"}
    facts = facts_of(recipe_dir, [*rows, same])
    assert facts.longer_chosen == wilson(3.5, 5)  # a tie counts one half
    assert facts.length_ratio == 2.0  # of 2, 2, 2, ½ and 1


def test_authors_of_the_completions(recipe_dir: RecipeDir) -> None:
    rows = [
        {**PAIR, "chosen_model": "meta-llama/Llama-3.1-8B-Instruct", "rejected_model": "gpt-x"},
        {"prompt": "b", "completions": ["a", "c"], "ratings": [1, 2], "models": ["Llama-3.1-8B-Instruct", "gpt-x"]},
        {**LABEL, "model": "meta-llama/Llama-3.1-8B"},  # the base is another model
    ]
    files = [[row] for row in rows]
    files[-1].append({**LABEL, "completion": "3", "label": False})
    facts = facts_of(recipe_dir, *files, model="meta-llama/Llama-3.1-8B-Instruct")
    assert facts.models.total() == 5
    assert facts.own == pytest.approx(2 / 5)
    assert facts_of(recipe_dir, *files).own is None  # no model given
    assert facts_of(recipe_dir, [PAIR], model="x").own is None


@pytest.mark.parametrize(
    ("column", "value", "reward"),
    [
        ("solution", "2", "[{type: math}]"),
        ("tests", ["assert f()"], "[{type: code}]"),
        ("test_list", ["assert f()"], "[{type: code, tests_column: test_list}]"),
        ("schema", {"type": "object"}, "[{type: json_schema}]"),
    ],
)
def test_columns_that_answers_can_be_checked_with(recipe_dir: RecipeDir, column: str, value: Any, reward: str) -> None:
    rows = [{"prompt": f"{i}", column: value if i else None} for i in range(10)]
    facts = facts_of(recipe_dir, rows)
    assert facts.check is not None
    assert facts.check.setting == reward
    load(ROOT / "configs/8b/grpo.yaml", [f"reward={reward}"])
    assert facts_of(recipe_dir, [*rows, {"prompt": "x"}]).check is None  # 9 of 11
    assert facts_of(recipe_dir, [PAIR] * 20, rows).check == facts.check  # the pairs are in another file
    assert facts_of(recipe_dir, [{"prompt": "x"}], verifiable=True).check == Check(reward="function")


def test_tokens_are_counted_with_a_local_tokenizer(recipe_dir: RecipeDir) -> None:
    tokenizer()
    rows = [{"prompt": "1+1=", "completion": "2"}, {"prompt": "10+10=", "completion": "200"}]
    exact = facts_of(recipe_dir, rows, model="model")
    assert (exact.by_tokenizer, exact.prompt_tokens, exact.response_tokens) == (True, 5.0, 2.0)
    assert exact.longest == 9  # of 5 and 9
    estimated = facts_of(recipe_dir, rows)
    assert (estimated.by_tokenizer, estimated.prompt_tokens) == (False, 5 / 4)
