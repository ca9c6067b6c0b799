"""Reward models and critic models, from directories and from earlier stages."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from recipe_dir import RecipeDir

from orchestrator.cli.main import main
from orchestrator.config import load
from orchestrator.pipeline.roles import gang_plans
from workers.config import ModelRewardConfig

STAGES = """
stages:
- name: judge
  model: {path: ./model, dtype: float32}
  data: {dataset: ./pairs.jsonl}
  algorithm: {type: reward_model, batch_size: 4}
- name: base
  model: {path: ./model}
  data: {dataset: ./demos.jsonl}
  algorithm: {type: sft, batch_size: 4}
- name: final
  model: {from_stage: base}
  data: {prompts: ./prompts.jsonl}
  algorithm: {type: ppo, prompts_per_step: 4, max_steps: 2}
  reward: [{type: math}, {type: model, from_stage: judge, weight: 0.5}]
  critic_model: {from_stage: judge}
"""
Golden = Callable[[str, str], None]


@pytest.fixture
def stages(recipe_dir: RecipeDir) -> Path:
    path = recipe_dir.path / "stages.yaml"
    path.write_text(STAGES)
    return path


def scorer(recipe_dir: RecipeDir, **changes: object) -> None:
    """Write a reward model: `./judge`."""
    judge = recipe_dir.path / "judge"
    judge.mkdir(exist_ok=True)
    for file in (recipe_dir.path / "model").iterdir():
        (judge / file.name).write_bytes(file.read_bytes())
    kind = {"model_type": "qwen2", "architectures": ["Qwen2ForSequenceClassification"]}
    config = {**kind, "id2label": {"0": "LABEL_0"}, "vocab_size": 10}
    (judge / "config.json").write_text(json.dumps(config | changes))


def test_every_origin_may_be_an_earlier_stage(stages: Path) -> None:
    final = load(stages).stages[-1]
    judge = final.reward[1]
    assert isinstance(judge, ModelRewardConfig)
    assert final.critic_model is not None
    assert final.model.path == "runs/base/model"
    assert judge.path == final.critic_model.path == "runs/judge/model"
    assert judge.from_stage is None
    assert judge.weight == 0.5
    assert main(["validate", str(stages)]) == 0  # models of earlier stages need not exist yet


def test_the_gangs_get_these_models(stages: Path) -> None:
    judge, _, final = load(stages).stages
    (policy, dataset) = gang_plans(judge, cuda=False, max_steps=2)
    assert [policy.role, dataset.role] == ["policy", "dataset"]
    assert policy.arguments[0]["head"] == "scores"
    plans = {p.role: p for p in gang_plans(final, cuda=True, max_steps=2)}
    assert plans["policy"].arguments[0]["model"].path == "runs/base/model"
    assert plans["critic"].arguments[0]["model"].path == "runs/judge/model"
    assert plans["critic"].arguments[0]["head"] == "values"
    assert plans["reward"].resources.gpus == 1
    assert {p.role: p.resources.gpus for p in gang_plans(final, cuda=False, max_steps=2)}["reward"] == 0


def test_a_directory_of_a_reward_model_is_accepted(recipe_dir: RecipeDir) -> None:
    scorer(recipe_dir)
    (recipe_dir.path / "model" / "config.json").write_text('{"model_type": "llama", "vocab_size": 10}')
    changes = {
        "algorithm": "{type: ppo, prompts_per_step: 4, max_steps: 10}",
        "reward": "[{type: model, path: ./judge}]",
        "critic_model": "{path: ./judge}",
    }
    recipe_dir.recipe(changes)
    assert main(["validate", "recipe.yaml"]) == 0


def test_a_critic_does_not_start_from_several_scores(
    recipe_dir: RecipeDir, golden: Golden, capsys: pytest.CaptureFixture[str]
) -> None:
    scorer(recipe_dir, id2label={"0": "helpful", "1": "brief"})
    (recipe_dir.path / "model" / "config.json").write_text('{"model_type": "llama", "vocab_size": 10}')
    changes = {"algorithm": "{type: ppo, prompts_per_step: 4, max_steps: 10}", "critic_model": "{path: ./judge}"}
    recipe_dir.recipe(changes)
    refused("recipe.yaml", "a-critic-of-two-scores", golden, capsys)


@pytest.mark.parametrize(
    ("name", "edit"),
    [
        ("unknown-stage-of-a-reward", ("type: model, from_stage: judge", "type: model, from_stage: juge")),
        ("label-of-a-stage-with-one-score", ("from_stage: judge, weight", "from_stage: judge, label: safe, weight")),
        ("a-policy-as-reward-model", ("type: model, from_stage: judge", "type: model, from_stage: base")),
        ("a-reward-model-as-policy", ("  model: {from_stage: base}", "  model: {from_stage: judge}")),
        ("critic-model-without-critic", ("type: ppo", "type: grpo")),
    ],
)
def test_stages_of_the_wrong_kind(
    name: str, edit: tuple[str, str], stages: Path, golden: Golden, capsys: pytest.CaptureFixture[str]
) -> None:
    assert edit[0] in STAGES
    stages.write_text(STAGES.replace(*edit))
    refused("stages.yaml", name, golden, capsys)


def test_directories_of_the_wrong_kind(
    recipe_dir: RecipeDir, golden: Golden, capsys: pytest.CaptureFixture[str]
) -> None:
    reward = {"reward": "[{type: model, path: ./judge}]"}
    recipe_dir.recipe(reward)
    refused("recipe.yaml", "no-reward-model", golden, capsys)
    scorer(recipe_dir, architectures=["Qwen2ForCausalLM"])
    refused("recipe.yaml", "a-language-model-as-reward-model", golden, capsys)
    scorer(recipe_dir, id2label={"0": "bad", "1": "good"})
    refused("recipe.yaml", "two-labels", golden, capsys)
    recipe_dir.recipe({"reward": "[{type: model, path: ./judge, label: fine}]"})
    refused("recipe.yaml", "no-such-label", golden, capsys)
    recipe_dir.recipe({"reward": "[{type: model, path: ./judge, label: good}]"})
    assert main(["validate", "recipe.yaml"]) == 0
    capsys.readouterr()
    scorer(recipe_dir)
    recipe_dir.recipe({"reward": "[{type: pairwise, path: ./judge}]"})
    refused("recipe.yaml", "a-reward-model-that-compares", golden, capsys)
    recipe_dir.recipe({"model": "{path: ./judge}"})
    refused("recipe.yaml", "a-reward-model-that-should-write", golden, capsys)
    (recipe_dir.path / "model" / "config.json").write_text('{"model_type": "llama", "vocab_size": 12}')
    recipe_dir.recipe(
        {"algorithm": "{type: ppo, prompts_per_step: 4, max_steps: 10}", "critic_model": "{path: ./judge}"}
    )
    refused("recipe.yaml", "critic-of-another-vocabulary", golden, capsys)


def refused(recipe: str, name: str, golden: Golden, capsys: pytest.CaptureFixture[str]) -> None:
    code = main(["validate", recipe])
    printed = capsys.readouterr()
    assert (code, printed.out) == (2, "")
    golden(name, printed.err)
