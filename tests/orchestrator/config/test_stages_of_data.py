"""Data sets that one stage of a recipe hands to another: `data: {from_stage: NAME}`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from orchestrator.config import Recipe, load
from orchestrator.errors import BadInput

SAMPLES = {
    "name": "samples",
    "model": {"path": "m"},
    "data": {"prompts": "p.jsonl"},
    "reward": [{"type": "math"}],
    "algorithm": {"type": "generate"},
}
STUDENT = {"name": "student", "model": {"path": "m"}, "data": {"from_stage": "samples"}, "algorithm": {"type": "sft"}}


def recipe(directory: Path, *stages: dict[str, Any], overrides: tuple[str, ...] = ()) -> Recipe:
    path = directory / "recipe.yaml"
    path.write_text(yaml.safe_dump({"stages": list(stages)}, sort_keys=False))
    return load(path, overrides)


def test_the_data_set_of_an_earlier_stage_is_the_dataset(tmp_path: Path) -> None:
    samples, student = recipe(tmp_path, SAMPLES, STUDENT, overrides=("output_dir=elsewhere",)).stages
    assert student.data.dataset == str(samples.artifact) == "elsewhere/samples/data/rows.parquet"
    assert student.data.from_stage is None
    assert student.artifact == student.model_directory


def test_a_data_set_is_one_of_several_sources(tmp_path: Path) -> None:
    union = [{"from_stage": "samples", "weight": 0.75}, {"path": "demonstrations.jsonl", "weight": 0.25}]
    samples, student = recipe(tmp_path, SAMPLES, {**STUDENT, "data": {"dataset": union}}).stages
    assert student.data.paths("dataset") == (str(samples.artifact), "demonstrations.jsonl")
    assert student.data.shares("dataset") == (0.75, 0.25)


def test_the_name_of_an_unnamed_stage_does_not_depend_on_where_the_data_set_is(tmp_path: Path) -> None:
    unnamed = {key: value for key, value in STUDENT.items() if key != "name"}
    names = {
        recipe(tmp_path, SAMPLES, unnamed, overrides=overrides).stages[1].name
        for overrides in ((), ("output_dir=elsewhere",))
    }
    assert len(names) == 1


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"data": {"from_stage": "sample"}}, "did you mean samples?"),
        (
            {"model": {"from_stage": "samples"}, "data": {"dataset": "d.jsonl"}},
            "that stage (generate) writes a data set",
        ),
        ({"data": {"from_stage": "samples", "dataset": "d.jsonl"}}, "both name a dataset"),
        ({"data": {"dataset": [{"from_stage": "sample"}]}}, "did you mean samples?"),
        ({"data": {"dataset": [{"from_stage": "samples", "path": "d"}]}}, "has both path and from_stage"),
    ],
)
def test_what_a_stage_does_not_write_cannot_be_used(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(BadInput) as raised:
        recipe(tmp_path, SAMPLES, {**STUDENT, **changes})
    assert message in str(raised.value)


def test_the_model_of_a_stage_is_no_data_set(tmp_path: Path) -> None:
    trained = {**SAMPLES, "algorithm": {"type": "grpo", "max_steps": 3}}
    with pytest.raises(BadInput) as raised:
        recipe(tmp_path, trained, STUDENT)
    assert "that stage (grpo) writes a model" in str(raised.value)
