"""Overrides of a comparison on the command line: which runs and stages each of them reaches."""

from __future__ import annotations

from pathlib import Path

import pytest
from recipe_dir import OFFLINE_DPO, RecipeDir

from orchestrator.compare.overrides import flat
from orchestrator.compare.recipe import Comparison, load_comparison
from orchestrator.errors import BadInput

COMPARE = """\
name: two
seeds: [0, 1]
num_samples: 2
tasks:
  - name: adding
    methods:
      - {name: GRPO, recipe: grpo.yaml, sweep: {algorithm.beta: [0.01, 0.1]}, overrides: {policy: {num_ranks: 2}}}
      - {name: offline DPO, recipe: dpo.yaml}
"""
STAGED = """\
stages:
  - {name: base.v1, model: {path: ./model}, data: {dataset: ./demos.jsonl}, algorithm: {type: sft, batch_size: 4}}
  - name: second
    model: {from_stage: base.v1}
    data: {dataset: ./pairs.jsonl, eval_prompts: ./prompts.jsonl}
    algorithm: {type: dpo, batch_size: 4}
    reward: [{type: math}]
"""


@pytest.fixture
def comparison(recipe_dir: RecipeDir) -> Path:
    data = "{prompts: ./pairs.jsonl, eval_prompts: ./prompts.jsonl}"
    recipe_dir.recipe({"data": data, "model": "{path: runs/base.v1/model}"}, name="grpo.yaml")
    Path("dpo.yaml").write_text(STAGED)
    Path("compare.yaml").write_text(COMPARE)
    return Path("compare.yaml")


def loaded(path: Path, *overrides: str) -> Comparison:
    return load_comparison(path, overrides)


def test_keys_of_the_comparison(comparison: Path) -> None:
    found = loaded(comparison, "seeds=[7]", "tasks.0.about=sums", "num_samples=4")
    assert [(r.method, r.setting, r.seed) for r in found.runs] == [
        ("GRPO", "beta 0.01", 7),
        ("GRPO", "beta 0.1", 7),
        ("offline DPO", "", 7),
    ]
    assert {r.config.evaluation.num_samples for r in found.runs} == {4}
    assert found.config.tasks[0].about == "sums"
    assert found.command == "rlhf compare compare.yaml 'seeds=[7]' tasks.0.about=sums num_samples=4"


def test_a_setting_of_every_run_and_of_one_method(comparison: Path) -> None:
    found = loaded(
        comparison, "evaluation.max_prompts=3", "methods.offline DPO.algorithm.beta=0.7", "policy.num_ranks=1"
    )
    assert {r.config.evaluation.max_prompts for r in found.runs} == {3}
    assert {r.config.policy.num_ranks for r in found.runs} == {1}, "also over a mapping in the file"
    betas = {(r.method, r.config.algorithm.beta) for r in found.runs}  # type: ignore[union-attr]
    assert betas == {("GRPO", 0.01), ("GRPO", 0.1), ("offline DPO", 0.7)}


def test_settings_of_stages(comparison: Path) -> None:
    found = loaded(comparison, "stages.*.cluster.device=cpu", "stages.base.v1.algorithm.learning_rate=0.5")
    for run in found.runs:
        assert {stage.cluster.device for stage in run.recipe.stages} == {"cpu"}
    base, second = found.runs[-1].recipe.stages
    assert (base.algorithm.learning_rate, second.algorithm.learning_rate != 0.5) == (0.5, True)


def test_earlier_stages_lie_beside_the_comparison_where_it_names_a_directory(comparison: Path) -> None:
    assert [s.output_dir for s in loaded(comparison).runs[-1].recipe.stages] == ["runs", "runs/two"]
    moved = loaded(comparison, "output_dir=/shared", "methods.GRPO.model.path=/shared/base.v1/model")
    assert [s.output_dir for s in moved.runs[-1].recipe.stages] == ["/shared", "/shared/two"]
    assert moved.runs[-1].config.model.path == "/shared/base.v1/model"


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("methods.PPO.seed=1", "there is no such method"),
        ("stages.bse.v1.seed=1", "there is no such stage"),
        ("algorithm.beta=0.3", "the comparison sets it, in every run of GRPO"),
        ("seed=3", "the comparison sets it"),
        ("algorithm.bta=0.3", "there is no such key"),
        ("seeds=[1, 1]", "an entry is repeated"),
        ("--seeds=[1]", "a key has no dashes"),
    ],
)
def test_errors_name_the_override(comparison: Path, override: str, message: str) -> None:
    with pytest.raises(BadInput, match=message):
        loaded(comparison, override)


def test_mappings_are_flattened_to_their_leaves() -> None:
    assert flat({"a": {"b": 1, "c": {"d": [2]}}, "e.f": {}}) == {"a.b": 1, "a.c.d": [2], "e.f": {}}


def test_offline_recipe_of_the_directory_is_used(recipe_dir: RecipeDir) -> None:
    """Check that a recipe without stages takes `stages.*` for its only one."""
    data = "{dataset: ./pairs.jsonl, eval_prompts: ./prompts.jsonl}"
    recipe_dir.recipe({**OFFLINE_DPO, "data": data, "reward": "[{type: math}]"}, name="dpo.yaml")
    Path("one.yaml").write_text("{name: one, seeds: [0], tasks: [{name: t, methods: [{name: DPO, recipe: dpo.yaml}]}]}")
    assert loaded(Path("one.yaml"), "stages.*.cluster.device=cpu").runs[0].config.cluster.device == "cpu"
