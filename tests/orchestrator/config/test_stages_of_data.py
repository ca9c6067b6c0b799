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


def with_constitution(name: str, rows: str, prompts: Any) -> dict[str, Any]:
    algorithm = {"type": "generate", "rows": rows, "constitution": "c.yaml"}
    return {"name": name, "model": {"path": "m"}, "data": {"prompts": prompts}, "algorithm": algorithm}


CRITIQUES = with_constitution("critiques", "critique", {"from_stage": "samples"})
REVISIONS = with_constitution("revisions", "revision", {"from_stage": "critiques"})


def test_prompts_may_be_the_rows_of_an_earlier_stage(tmp_path: Path) -> None:
    samples, critiques, revisions = recipe(tmp_path, SAMPLES, CRITIQUES, REVISIONS).stages
    assert critiques.data.paths("prompts") == (str(samples.data_file),)
    assert revisions.data.prompt_sources == (str(critiques.data_file),)
    listed = [{"from_stage": "samples", "max_rows": 3}, "more.jsonl"]
    samples, critiques = recipe(tmp_path, SAMPLES, with_constitution("critiques", "critique", listed)).stages
    assert critiques.data.paths("prompts") == (str(samples.data_file), "more.jsonl")
    assert critiques.data.sources("prompts")[0].max_rows == 3


def test_sft_reads_revisions_and_dpo_their_pairs(tmp_path: Path) -> None:
    trained = [
        {**STUDENT, "name": name, "data": {"from_stage": "revisions"}, "algorithm": {"type": name}}
        for name in ("sft", "dpo")
    ]
    *_, revisions, sft, dpo = recipe(tmp_path, SAMPLES, CRITIQUES, REVISIONS, *trained).stages
    assert revisions.artifacts == (revisions.data_file, revisions.pairs_file)
    assert (sft.data.dataset, dpo.data.dataset) == (str(revisions.data_file), str(revisions.pairs_file))


def test_a_further_round_criticises_revisions(tmp_path: Path) -> None:
    again = with_constitution("again", "critique", {"from_stage": "revisions"})
    further = with_constitution("further", "revision", {"from_stage": "again"})
    both = {"dataset": [{"from_stage": "revisions"}, {"from_stage": "further"}]}
    trained = {**STUDENT, "data": both, "algorithm": {"type": "dpo"}}
    stages = recipe(tmp_path, SAMPLES, CRITIQUES, REVISIONS, again, further, trained).stages
    _, _, first, critiques, second, dpo = stages
    assert critiques.data.paths("prompts") == (str(first.data_file),)
    assert dpo.data.paths("dataset") == (str(first.pairs_file), str(second.pairs_file))


@pytest.mark.parametrize(
    ("stage", "message"),
    [
        (with_constitution("r", "revision", {"from_stage": "samples"}), "that stage has rows completion"),
        (with_constitution("c", "critique", {"from_stage": "critiques"}), "that stage has rows critique"),
        ({**STUDENT, "data": {"from_stage": "critiques"}}, "name the stage that revises after these critiques"),
        ({**SAMPLES, "name": "s", "data": {"prompts": {"from_stage": "critiques"}}}, "where rows is revision"),
        (with_constitution("c", "critique", {"from_stage": "sample"}), "did you mean samples?"),
        (with_constitution("c", "critique", {"from_stage": "samples", "path": "d"}), "has both path and from_stage"),
        (with_constitution("c", "completion", "p.jsonl"), "leave constitution out"),
        ({**SAMPLES, "name": "s", "algorithm": {"type": "generate", "rows": "critique"}}, "set rows to critique"),
    ],
)
def test_rows_of_another_form_are_refused(tmp_path: Path, stage: dict[str, Any], message: str) -> None:
    with pytest.raises(BadInput) as raised:
        recipe(tmp_path, SAMPLES, CRITIQUES, stage)
    assert message in str(raised.value)


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
