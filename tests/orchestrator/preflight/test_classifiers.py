"""Text-classification models and classifiers of refusals that a recipe or a suite names, checked by their files."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from recipe_dir import RecipeDir

from orchestrator.cli.main import main
from orchestrator.config import load
from orchestrator.errors import Problems
from orchestrator.evaluation.suite import load_suite
from orchestrator.evaluation.suite_files import check_suite
from orchestrator.launch.named import named_by_stages
from orchestrator.rundir.inputs import inputs_of

BERT = {"model_type": "bert", "architectures": ["BertForSequenceClassification"], "vocab_size": 10}
NLI = {**BERT, "id2label": {"0": "contradiction", "1": "neutral", "2": "entailment"}}
COLUMN = "{type: classifier, path: ./judge, label: entailment, premise_column: solution}"


def judge(recipe_dir: RecipeDir, config: dict[str, Any] = NLI) -> None:
    shutil.copytree(recipe_dir.path / "model", recipe_dir.path / "judge")
    (recipe_dir.path / "judge" / "config.json").write_text(json.dumps(config))


def validated(reward: str, recipe_dir: RecipeDir, capsys: pytest.CaptureFixture[str]) -> str:
    """Return what `rlhf validate` reports; empty: nothing."""
    recipe_dir.recipe({"reward": f"[{reward}]"})
    code = main(["validate", "recipe.yaml"])
    printed = capsys.readouterr().err
    assert "Traceback" not in printed
    return printed if code else ""


def test_an_encoder_is_a_classifier(recipe_dir: RecipeDir, capsys: pytest.CaptureFixture[str]) -> None:
    judge(recipe_dir)
    assert validated(COLUMN, recipe_dir, capsys) == ""
    assert validated("{type: classifier, path: ./judge, label: neutral, weight: -1}", recipe_dir, capsys) == ""


CASES: list[tuple[dict[str, Any], str, list[str]]] = [
    (NLI, "{type: classifier, path: ./judge, label: toxic}", [
        "reward.0.label = toxic", "no label 'toxic'", "has the labels contradiction, neutral, entailment"]),
    (BERT, "{type: classifier, path: ./judge, label: toxic}", ["has the labels LABEL_0, LABEL_1"]),
    ({**BERT, "id2label": {"0": "LABEL_0"}}, "{type: classifier, path: ./judge, label: LABEL_0}", [
        "it has one label, which makes it a reward model", "set type to model"]),
    ({"model_type": "llama", "architectures": ["LlamaForCausalLM"]}, "{type: classifier, path: ./judge, label: a}", [
        "not a classifier", "it is a LlamaForCausalLM; a classifier is a …ForSequenceClassification"]),
    (NLI, COLUMN.replace("solution", "reference"), [
        "has no column `reference`", "the classifier reads it as the premise", "set reward.0.premise_column"]),
    ({**NLI, "max_position_embeddings": 64}, COLUMN.replace("}", ", max_length: 65}"), [
        "reward.0.max_length 65: 65 tokens are more than the 64 positions of ./judge"]),
    (NLI, "{type: classifier, path: ./judge}", ["label"]),
]  # fmt: skip


@pytest.mark.parametrize(("config", "reward", "expected"), CASES)
def test_a_classifier_that_cannot_be_used_is_refused(
    config: dict[str, Any],
    reward: str,
    expected: list[str],
    recipe_dir: RecipeDir,
    capsys: pytest.CaptureFixture[str],
) -> None:
    judge(recipe_dir, config)
    printed = " ".join(validated(reward, recipe_dir, capsys).split())
    assert [part for part in expected if part not in printed] == []


def test_no_stage_trains_a_classifier(recipe_dir: RecipeDir, capsys: pytest.CaptureFixture[str]) -> None:
    (recipe_dir.path / "two.yaml").write_text(
        "stages:\n"
        "- name: rm\n  model: {path: ./model}\n  data: {dataset: ./pairs.jsonl}\n"
        "  algorithm: {type: reward_model, batch_size: 4}\n"
        "- name: rl\n  model: {path: ./model}\n  data: {prompts: ./prompts.jsonl}\n"
        "  algorithm: {type: grpo, prompts_per_step: 4, num_generations: 2, max_steps: 10}\n"
        "  reward: [{type: classifier, from_stage: rm, label: toxic}]\n"
    )
    assert main(["validate", "two.yaml"]) == 2
    assert "no stage trains a classifier" in capsys.readouterr().err


def test_rows_whose_premise_cannot_be_read(recipe_dir: RecipeDir, capsys: pytest.CaptureFixture[str]) -> None:
    judge(recipe_dir)
    rows: list[object] = [{"prompt": f"{i}+1=", "solution": "1"} for i in range(6)]
    recipe_dir.jsonl("prompts.jsonl", [*rows, {"prompt": "6+1=", "solution": 7}, {"prompt": "7+1=", "solution": " "}])
    printed = " ".join(validated(COLUMN, recipe_dir, capsys).split())
    assert "prompts.jsonl:7" in printed
    assert "`solution` is not text (int)" in printed
    assert "`solution` is empty" in printed


def test_a_suite_is_checked_as_well(recipe_dir: RecipeDir) -> None:
    judge(recipe_dir)
    problems = Problems()
    (recipe_dir.path / "suite.yaml").write_text(
        "prompts: prompts.jsonl\nrefusal: {type: refusal, classifier: nowhere.npz}\n"
        "reward: [{type: classifier, path: ./judge, label: toxic}, {type: classifier, path: ./judge, label: neutral}]\n"
    )
    check_suite(load_suite(Path("suite.yaml")).config, {}, problems)
    assert [(p.what, p.where) for p in problems] == [
        ("no label 'toxic'", "reward.0.label = toxic"),
        ("not a classifier of refusals", "refusal.classifier = nowhere.npz"),
    ]


# ------------------------------------------------------------------------------------------------ of refusals


def test_a_file_that_is_no_classifier_of_refusals(recipe_dir: RecipeDir, capsys: pytest.CaptureFixture[str]) -> None:
    (recipe_dir.path / "mine.npz").write_text("text")
    printed = validated("{type: refusal, classifier: mine.npz}", recipe_dir, capsys)
    assert "reward.0.classifier = mine.npz" in printed
    assert "not a classifier of refusals" in printed
    assert validated("{type: refusal, classifier: default}", recipe_dir, capsys) == ""
    recipe_dir.recipe({"evaluation": "{refusal: {type: refusal, classifier: mine.npz}}"})
    assert main(["validate", "recipe.yaml"]) == 2
    assert "evaluation.refusal.classifier = mine.npz" in capsys.readouterr().err


def test_a_classifier_of_refusals_is_an_input_and_is_shipped(recipe_dir: RecipeDir) -> None:
    file = recipe_dir.path / "mine.npz"
    np.savez(file, weights=np.zeros(4), bias=0.0)
    recipe_dir.recipe({"evaluation": "{refusal: {type: refusal, classifier: mine.npz}}"})
    (stage,) = load(Path("recipe.yaml")).stages
    before = inputs_of(stage)
    assert "evaluation.refusal.classifier" in before
    assert ("mine.npz", "evaluation.refusal.classifier") in {
        (named.path, named.by) for named in named_by_stages([stage], recipe_dir.path)
    }
    np.savez(file, weights=np.ones(4), bias=0.0)
    changed = inputs_of(stage)
    assert {key for key in before if before[key] != changed[key]} == {"evaluation.refusal.classifier"}
    recipe_dir.recipe({"evaluation": "{refusal: {type: refusal, classifier: default}}"})
    (stage,) = load(Path("recipe.yaml")).stages
    assert "evaluation.refusal.classifier" not in inputs_of(stage)
