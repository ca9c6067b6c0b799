"""Recipe that is run again: changes since the last run are detected, and no existing run is lost."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from recipe_dir import RecipeDir
from run_on_disk import write_attempt

from orchestrator.cli.main import main
from orchestrator.config import Recipe, load
from orchestrator.driver.driver import resume_run, run_recipe
from orchestrator.errors import BadInput, ResumeError
from orchestrator.launch.named import named_by_stages
from orchestrator.preflight.preflight import preflight
from orchestrator.rundir.directory import RunDirectory
from orchestrator.rundir.existing import check_existing, move_aside, refuse_other_inputs, write_inputs
from orchestrator.rundir.ledger import Fact, Ledger

Golden = Callable[[str, str], None]
REWARD = {"reward": "[{type: function, function: 'mine.py:reward'}]"}


def finished(recipe: Recipe, index: int = -1) -> RunDirectory:
    """Create the directory of a stage that has finished."""
    config = recipe.stages[index]
    directory = RunDirectory.create(config, recipe.text)
    write_inputs(directory, config)
    write_attempt(directory, steps=10)
    (directory.model / "config.json").write_text(json.dumps({"trained": config.seed}))
    return directory


def stopped(recipe: Recipe, *facts: Fact) -> RunDirectory:
    """Create the directory of a run that failed after these facts of its first step."""
    directory = RunDirectory.create(recipe.stages[-1], recipe.text)
    write_inputs(directory, recipe.stages[-1])
    attempt = directory.start_attempt()
    with Ledger.open(directory.ledger) as ledger:
        ledger.append(Fact.attempt, attempt=attempt, step=0)
        for fact in facts:
            ledger.append(fact, attempt=attempt, step=1)
    directory.write_exit(cause="worker_failed", message="it died", exit_code=4, attempt=attempt, step=0)
    return directory


@pytest.fixture
def recipe(recipe_dir: RecipeDir) -> Recipe:
    Path("mine.py").write_text("def reward(completions, **_):\n    return [0.0] * len(completions)\n")
    return load(recipe_dir.recipe(REWARD))


def why(recipe: Recipe) -> str:
    with pytest.raises(BadInput) as caught:
        check_existing(recipe)
    return str(caught.value)


# ------------------------------------------------------------------------------------------------ a complete run


def test_an_unchanged_run_is_reused(recipe: Recipe, capsys: pytest.CaptureFixture[str]) -> None:
    finished(recipe)
    Path("prompts.jsonl").touch()  # the modification time does not count
    assert run_recipe(recipe) == 0
    assert capsys.readouterr().out == f"arith: complete, reused ({Path('runs/arith/model').absolute()})\n"


def test_b22_other_data_are_refused_by_run_and_validate(
    recipe: Recipe, golden: Golden, capsys: pytest.CaptureFixture[str]
) -> None:
    finished(recipe)
    lines = Path("prompts.jsonl").read_text().splitlines(keepends=True)[:6]
    Path("prompts.jsonl").write_text("".join(lines))
    assert main(["validate", "recipe.yaml"]) == 2
    golden("b22-other-data", capsys.readouterr().err)
    with pytest.raises(BadInput):
        run_recipe(recipe)


def test_a_change_in_any_file_of_a_reward_is_refused(recipe: Recipe) -> None:
    Path("mine.py").write_text("import helpers\nfrom scale import factor\n\ndef reward(**_): return helpers.score()\n")
    Path("helpers.py").write_text("import deep.inside\n")
    Path("deep").mkdir()
    Path("deep/inside.py").write_text("x = 1\n")
    Path("scale.py").write_text("factor = 2\n")
    finished(recipe)
    assert check_existing(recipe) == []
    for file in ("mine.py", "helpers.py", "deep/inside.py", "scale.py"):
        before = Path(file).read_text()
        Path(file).write_text(before + "# changed\n")
        assert "reward.0.function (mine.py:reward) has changed" in why(recipe)
        Path(file).write_text(before)
    assert check_existing(recipe) == []


def test_a_reward_in_a_module_is_compared_by_its_source(recipe_dir: RecipeDir) -> None:
    Path("rewards").mkdir()
    Path("rewards/__init__.py").write_text("")
    Path("rewards/maths.py").write_text("from .same import equal\n")
    Path("rewards/same.py").write_text("equal = 1\n")
    recipe = load(recipe_dir.recipe({"reward": "[{type: function, function: 'rewards.maths:reward'}]"}))
    finished(recipe)
    assert check_existing(recipe) == []
    Path("rewards/same.py").write_text("equal = 2\n")
    assert "reward.0.function (rewards.maths:reward) has changed" in why(recipe)


def test_other_filters_of_the_same_samples_name_the_command_that_filters_them(recipe_dir: RecipeDir) -> None:
    def sampled(**algorithm: object) -> Recipe:
        return load(recipe_dir.recipe({**REWARD, "algorithm": json.dumps({"type": "generate", **algorithm})}))

    finished(sampled())
    command = f"rlhf filter {Path('runs/arith').absolute()} a.b=c --to DIR"
    assert command in why(sampled(per_prompt=1, filters={"min_score": 0.5}))
    assert command not in why(sampled(per_prompt=1, num_generations=2))


def test_other_weights_of_the_same_size_are_another_model(recipe: Recipe) -> None:
    finished(recipe)
    Path("model/README.md").write_text("a model card does not count")
    assert check_existing(recipe) == []
    Path("model/model.safetensors").write_bytes(b"\1" * 16)
    assert "model.path (./model) has changed" in why(recipe)


def test_a_run_without_recorded_inputs_is_reused_with_a_remark(
    recipe: Recipe, capsys: pytest.CaptureFixture[str]
) -> None:
    """Check a run of an earlier version, which wrote no inputs.json."""
    finished(recipe).inputs.unlink()
    assert run_recipe(recipe) == 0
    assert capsys.readouterr().out.rstrip().endswith("; its inputs were not recorded")


# ------------------------------------------------------------------------------------------------ --fresh


def test_fresh_keeps_the_existing_run(recipe: Recipe) -> None:
    lines: list[str] = []
    for number in (1, 2):
        ledger = finished(recipe).ledger.read_bytes()
        move_aside(recipe, fresh=True, say=lines.append)
        assert not Path("runs/arith").exists()
        assert Path(f"runs/arith.old-{number}/ledger.jsonl").read_bytes() == ledger
        assert Path(f"runs/arith.old-{number}/model/config.json").is_file()
    assert lines == [
        f"arith starts over: --fresh was given; the existing run is kept as arith.old-{number}" for number in (1, 2)
    ]


def test_fresh_does_not_move_a_run_whose_driver_is_running(recipe: Recipe) -> None:
    directory = finished(recipe)
    with directory.held(), pytest.raises(BadInput, match="is in use"):
        move_aside(recipe, fresh=True, say=print)
    assert directory.is_complete


# ------------------------------------------------------------------------------------------------ stages


@pytest.fixture
def stages(recipe_dir: RecipeDir) -> Recipe:
    recipe_dir.recipe({"data": "{dataset: ./demos.jsonl}", "algorithm": "{type: sft}", "reward": None}, "base.yaml")
    Path("both.yaml").write_text(
        "stages:\n- {recipe: base.yaml}\n- name: second\n  model: {from_stage: arith}\n"
        "  data: {prompts: ./prompts.jsonl}\n"
        "  algorithm: {type: grpo, prompts_per_step: 4, num_generations: 2, max_steps: 10}\n  reward: [{type: math}]\n"
    )
    recipe = load("both.yaml")
    finished(recipe, 0)
    finished(recipe, 1)
    assert check_existing(recipe) == []
    return recipe


def test_a_stage_whose_model_was_trained_again_is_refused(stages: Recipe) -> None:
    Path("runs/arith/model/config.json").write_text("{}")
    assert "model.path (runs/arith/model) has changed" in why(stages)


def test_a_stage_whose_model_is_about_to_be_trained_again_is_refused_before_that(stages: Recipe) -> None:
    RunDirectory.open(Path("runs/arith")).set_aside()
    assert "model.path (runs/arith/model) is about to be trained again" in why(stages)


def test_fresh_reuses_an_unchanged_earlier_stage(stages: Recipe) -> None:
    move_aside(stages, fresh=True, say=print)
    assert (Path("runs/arith").exists(), Path("runs/second").exists()) == (True, False)


def test_fresh_starts_over_every_stage_that_depends_on_a_change(stages: Recipe) -> None:
    with open("demos.jsonl", "a") as opened:
        opened.write(json.dumps({"prompt": "9+1=", "completion": "10"}) + "\n")
    assert "data.dataset (./demos.jsonl) has changed" in why(stages)
    assert [run.directory.name for run in check_existing(stages, fresh=True, restart_last=False)] == ["arith", "second"]


# ------------------------------------------------------------------------------------------------ an unfinished run


@pytest.mark.parametrize("facts", [(), (Fact.planned, Fact.generated, Fact.scored, Fact.trained)])
def test_a_run_without_a_committed_step_gives_up_its_name(recipe: Recipe, facts: tuple[Fact, ...]) -> None:
    stopped(recipe, *facts)
    changed, lines = load("recipe.yaml", ["rollout.max_completion_length=128"]), list[str]()
    move_aside(changed, say=lines.append)
    assert lines == [
        "arith starts over: rollout.max_completion_length was 512 and is 128, and no step was completed; "
        "the existing run is kept as arith.old-1"
    ]
    assert RunDirectory.create(changed.stages[-1], changed.text).config() == changed.stages[-1]


def test_a_run_with_a_committed_step_keeps_its_name(recipe: Recipe) -> None:
    stopped(recipe, Fact.planned, Fact.trained, Fact.committed)
    message = why(load("recipe.yaml", ["seed=3"]))
    assert "seed was 0 and is 3" in message
    assert "rlhf resume runs/arith" in message


def test_samples_of_other_prompts_are_not_trained_on(recipe: Recipe) -> None:
    """Check a run whose first step was sampled, and would be read from its file."""
    stopped(recipe, Fact.planned, Fact.generated)
    Path("prompts.jsonl").write_text('{"prompt": "7-1=", "solution": "6"}\n' * 4)
    (run,) = check_existing(recipe)
    assert run.why == "data.prompts (./prompts.jsonl) has changed, and no step was completed"
    with pytest.raises(ResumeError, match=r"data\.prompts \(\./prompts\.jsonl\) has changed"):
        resume_run(Path("runs/arith"))


def test_changed_inputs_that_were_not_used_are_accepted(recipe: Recipe) -> None:
    directory = stopped(recipe)
    Path("prompts.jsonl").write_text('{"prompt": "7-1=", "solution": "6"}\n' * 4)
    assert check_existing(recipe) == []
    refuse_other_inputs(directory, recipe.stages[-1])
    assert write_inputs(directory, recipe.stages[-1]) == []


def test_a_reward_may_change_on_resume_and_is_reported(recipe: Recipe) -> None:
    directory = stopped(recipe, Fact.generated, Fact.committed)
    Path("mine.py").write_text("def reward(completions, **_):\n    return [1.0] * len(completions)\n")
    message = why(recipe)
    assert "reward.0.function (mine.py:reward) has changed" in message
    assert "resume the existing run: rlhf resume runs/arith" in message
    refuse_other_inputs(directory, recipe.stages[-1])
    (remark,) = write_inputs(directory, recipe.stages[-1])
    assert remark == (
        "reward.0.function (mine.py:reward) has changed since the previous attempt; "
        "the new contents are used from now on"
    )
    assert check_existing(recipe) == []


# ------------------------------------------------------------------------------------------------ a constitution


def test_other_principles_are_another_data_set(recipe_dir: RecipeDir) -> None:
    principles = Path("principles.yaml")
    principles.write_text("principles:\n  - {name: honest, critique: Name what is untrue., revision: Remove it.}\n")
    recipe_dir.jsonl("answers.jsonl", [{"prompt": "1+1=", "completion": "3"}])
    algorithm = "{type: generate, rows: critique, constitution: principles.yaml}"
    changes = {"data": "{prompts: answers.jsonl}", "reward": None, "algorithm": algorithm}
    recipe = load(recipe_dir.recipe(changes))
    directory = finished(recipe)
    directory.data.mkdir()
    assert check_existing(recipe) == []
    principles.write_text(principles.read_text().replace("untrue", "unkind"))
    assert "algorithm.constitution (principles.yaml) has changed" in why(recipe)
    named = {item.path: item.by for item in named_by_stages(recipe.stages, Path())}
    assert named["principles.yaml"] == "algorithm.constitution"
    principles.unlink()
    assert {item.path for item in named_by_stages(recipe.stages, Path())} >= {"principles.yaml"}, "not left out unsaid"
    with pytest.raises(BadInput, match=r"algorithm\.constitution = principles\.yaml: no such file"):
        preflight(recipe)
