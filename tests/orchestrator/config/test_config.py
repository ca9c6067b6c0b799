"""Valid recipes: stages, overrides, names, and the resolved config."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml
from pydantic import ValidationError
from recipe_dir import RecipeDir
from shipped import RECIPES

from orchestrator.cli.main import main
from orchestrator.config import RunConfig, load, resolved
from orchestrator.config.conflicts import RULES, find_conflicts
from orchestrator.config.key_index import PEERS, all_keys, known_keys, suggest
from orchestrator.config.recipe import from_resolved
from orchestrator.errors import BadInput
from workers.config import METHODS, FunctionRewardConfig, ModelRewardConfig

BASE = """
name: base
model: {path: ./model}
data: {dataset: ./demos.jsonl}
algorithm: {type: sft, batch_size: 4}
"""
STAGES = """
stages:
- {recipe: recipes/base.yaml}
- name: final
  model: {from_stage: base, dtype: float32}
  data: {prompts: ./prompts.jsonl}
  algorithm: {type: grpo, prompts_per_step: 4, max_steps: 10}
  reward: [{type: math}, {type: function, function: rewards.py:reward, weight: 0.5}]
"""


@pytest.fixture
def two_stages(recipe_dir: RecipeDir) -> Path:
    (recipe_dir.path / "recipes").mkdir()
    (recipe_dir.path / "recipes" / "base.yaml").write_text(BASE)
    (recipe_dir.path / "stages.yaml").write_text(STAGES)
    (recipe_dir.path / "rewards.py").write_text("def reward(completions, **columns): ...\n")
    return Path("stages.yaml")


def test_a_small_recipe_is_filled_with_the_defaults(recipe_dir: RecipeDir) -> None:
    (config,) = load(recipe_dir.recipe()).stages
    assert config.algorithm.type == "grpo"
    assert (config.max_staleness, config.checkpoint.every, config.checkpoint.keep) == (0, None, 2)
    assert (config.cluster.address, config.cluster.progress_timeout_s) == (None, 1800.0)
    assert config.critic is None
    assert config.model_directory == Path("runs/arith/model")


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: f"{path.parent.name}/{path.name}")
def test_every_recipe_that_is_shipped_loads(path: Path) -> None:
    assert load(path).stages


def test_a_config_is_frozen(recipe_dir: RecipeDir) -> None:
    (config,) = load(recipe_dir.recipe()).stages
    with pytest.raises(ValidationError):
        config.seed = 3


def test_conflicts_cannot_be_written_in_python_either(recipe_dir: RecipeDir) -> None:
    (config,) = load(recipe_dir.recipe()).stages
    assert find_conflicts(config) == []
    with pytest.raises(ValidationError, match="but nothing scores them"):
        RunConfig.model_validate({**dict(config), "reward": ()})


def test_every_rule_on_conflicts_has_a_golden_text() -> None:
    """List the rules: a new one fails here until it gets its case in test_bad_recipes."""
    names = "source reward steps evaluation export batches lengths overlong dynamic_sampling roles sampling lora"
    names += " checkpoints reporting pair_loss pairs soft_labels exploration teacher distillation"
    names += " rounds mix names_of_files weights labels reference combination normalization pairwise endpoints"
    names += " agreement win_rates generation"
    assert [rule.__name__ for rule in RULES] == names.split()


def test_resolved_is_complete_and_comes_back_equal(two_stages: Path) -> None:
    for config in load(two_stages).stages:
        data = resolved(config)
        assert from_resolved(json.loads(json.dumps(data)), "resolved.json") == config
        assert {*data} == {*RunConfig.model_fields}
        assert resolved(config) == data


def test_dry_run_prints_a_recipe_that_resolves_to_itself(two_stages: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["run", str(two_stages), "seed=3", "--dry-run"]) == 0
    printed = capsys.readouterr().out
    Path("again.yaml").write_text(printed)
    assert load("again.yaml").stages == load(two_stages, ["seed=3"]).stages
    assert yaml.safe_load(printed)["stages"][1]["seed"] == 3


def test_overrides_change_the_last_stage_or_the_named_one(two_stages: Path) -> None:
    overrides = [
        "seed=7",
        "stages.base.seed=3",
        "algorithm.learning_rate=1e-4",
        "reward.1.weight=2",
        "rollout={num_engines: 2}",
        "rollout.temperature=0.7",
        "report_to=[wandb]",
        "name='on'",
    ]
    base, final = load(two_stages, overrides).stages
    assert (base.seed, final.seed) == (3, 7)
    assert final.algorithm.learning_rate == 1e-4  # the command line is not YAML 1.1
    assert [r.weight for r in final.reward] == [1.0, 2]
    assert (final.rollout.num_engines, final.rollout.temperature) == (2, 0.7)  # mappings merge
    assert (final.report_to, base.report_to) == (("wandb",), ())
    assert final.name == "on"


def test_lists_replace(two_stages: Path) -> None:
    assert len(load(two_stages, ["reward=[{type: math}]"]).stages[1].reward) == 1


def test_a_stage_starts_from_the_model_of_an_earlier_one(two_stages: Path) -> None:
    recipe = load(two_stages, ["stages.base.output_dir=elsewhere"])
    base, final = recipe.stages
    assert final.model.path == str(base.model_directory) == "elsewhere/base/model"
    assert final.model.dtype == "float32"
    assert recipe.before(final) == (base,)
    assert main(["validate", str(two_stages)]) == 0  # the model of an earlier stage need not exist yet


def test_names_may_contain_dots(two_stages: Path) -> None:
    two_stages.write_text(STAGES.replace("name: final", "name: final.v1.0"))
    assert load(two_stages, ["stages.final.v1.0.seed=3"]).stages[1].seed == 3


def test_a_name_is_made_of_algorithm_model_and_content(two_stages: Path) -> None:
    two_stages.write_text(STAGES.replace("  name: final\n", "").replace("- model", "- model"))
    two_stages.write_text(two_stages.read_text().replace("- name: final\n  model", "- model"))
    first, repeated, other = (load(two_stages, o).stages[1].name for o in ([], [], ["seed=3"]))
    assert first.startswith("grpo--base--")
    assert len(first) == len("grpo--base--") + 6
    assert first == repeated != other
    relocated = load(two_stages, ["cluster.device=cpu", "output_dir=x"]).stages[1].name
    assert relocated == first  # settings of where it runs are not part of the id


def test_every_key_of_another_library_maps_to_an_existing_key() -> None:
    assert {ours for answers in PEERS.values() for ours in answers} <= set(all_keys())


@pytest.mark.parametrize("algorithm", METHODS)
def test_every_key_is_suggested_if_a_letter_is_missing(algorithm: str) -> None:
    data = {"algorithm": {"type": algorithm}}
    ambiguous = {
        "model",
        "teacher.model",
        "algorithm.adam_beta1",
        "algorithm.adam_beta2",
        "rollout.top_k",
        "rollout.top_p",
        "rounds",
    }
    for key in set(known_keys(algorithm)) - ambiguous:
        *parents, leaf = key.split(".")
        for i in range(1, len(leaf)) if len(leaf) >= 4 and parents != ["reward"] else ():
            typo = leaf[:i] + leaf[i + 1 :]
            if ".".join([*parents, typo]) not in all_keys():
                assert f"`{key}`" in suggest((*parents, typo), data), typo


def test_all_problems_of_all_stages_come_at_once(two_stages: Path) -> None:
    with pytest.raises(BadInput) as caught:
        load(two_stages, ["sed=3", "stages.base.algorithm.beta=1", "model.from_stage=bas"])
    assert [p.what for p in caught.value.problems] == ["algorithm.beta = 1", "model.from_stage = bas", "sed = 3"]


def test_a_tilde_is_the_home_directory_wherever_a_path_is_given(
    recipe_dir: RecipeDir, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(recipe_dir.path))
    keys = {
        "model": "{path: ~/model}",
        "data": "{prompts: ~/prompts.jsonl, eval_prompts: ~/prompts.jsonl}",
        "reward": "[{type: function, function: '~/mine.py:reward'}, {type: model, path: ~/model}]",
        "output_dir": "~/runs",
    }
    (config,) = load(recipe_dir.recipe(keys)).stages
    function, scorer = config.reward
    assert isinstance(function, FunctionRewardConfig)
    assert isinstance(scorer, ModelRewardConfig)
    given = (config.model.path, config.data.prompts, config.data.eval_prompts, scorer.path)
    assert given == tuple(f"{recipe_dir.path}/{name}" for name in ("model", "prompts.jsonl", "prompts.jsonl", "model"))
    assert function.function == f"{recipe_dir.path}/mine.py:reward"
    assert config.directory == recipe_dir.path / "runs" / "arith"
    Path("stages.yaml").write_text("stages: [{recipe: ~/recipe.yaml}]")
    assert load("stages.yaml").stages == (config,)


@pytest.mark.parametrize("number", [".nan", ".inf", "-.inf", "1.0e+39", "true"])
def test_a_weight_is_a_number_of_float32(recipe_dir: RecipeDir, number: str) -> None:
    with pytest.raises(BadInput, match="weight"):
        load(recipe_dir.recipe({"reward": f"[{{type: math, weight: {number}}}]"}))
    assert load(recipe_dir.recipe({"reward": "[{type: math, weight: -1_000}]"})).stages[0].reward[0].weight == -1000
