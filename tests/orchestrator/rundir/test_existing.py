"""A recipe that is run again: what changed since is seen, and nothing that is there is lost."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from recipe_dir import RecipeDir
from run_on_disk import live

from orchestrator.cli.main import main
from orchestrator.config import Recipe, load
from orchestrator.driver.driver import resume_run, run_recipe
from orchestrator.errors import BadInput, ResumeError
from orchestrator.rundir.directory import RunDirectory
from orchestrator.rundir.existing import look, refuse_other_inputs, settle, write_inputs
from orchestrator.rundir.ledger import Fact, Ledger

Golden = Callable[[str, str], None]
REWARD = {"reward": "[{type: function, function: 'mine.py:reward'}]"}


def finished(recipe: Recipe, index: int = -1) -> RunDirectory:
    """As the run of that stage leaves it."""
    config = recipe.stages[index]
    directory = RunDirectory.create(config, recipe.text)
    write_inputs(directory, config)
    live(directory, steps=10)
    (directory.model / "config.json").write_text(json.dumps({"trained": config.seed}))
    return directory


def stopped(recipe: Recipe, *facts: Fact) -> RunDirectory:
    """As an attempt that came to these facts of its first step leaves it."""
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
        look(recipe)
    return str(caught.value)


# ------------------------------------------------------------------------------------------------ a finished run


def test_what_has_not_changed_is_reused(recipe: Recipe, capsys: pytest.CaptureFixture[str]) -> None:
    finished(recipe)
    Path("prompts.jsonl").touch()  # a time is no content
    assert run_recipe(recipe) == 0
    assert capsys.readouterr().out == f"arith: complete, reused ({Path('runs/arith/model').absolute()})\n"


def test_b22_other_data_are_refused_by_run_and_validate(
    recipe: Recipe, golden: Golden, capsys: pytest.CaptureFixture[str]
) -> None:
    finished(recipe)
    kept = Path("prompts.jsonl").read_text().splitlines(keepends=True)[:6]
    Path("prompts.jsonl").write_text("".join(kept))
    assert main(["validate", "recipe.yaml"]) == 2
    golden("b22-other-data", capsys.readouterr().err)
    with pytest.raises(BadInput):
        run_recipe(recipe)


def test_another_reward_is_refused_wherever_it_is_written(recipe: Recipe) -> None:
    Path("mine.py").write_text("import helpers\nfrom scale import factor\n\ndef reward(**_): return helpers.score()\n")
    Path("helpers.py").write_text("import deep.inside\n")
    Path("deep").mkdir()
    Path("deep/inside.py").write_text("x = 1\n")
    Path("scale.py").write_text("factor = 2\n")
    finished(recipe)
    assert look(recipe) == []
    for file in ("mine.py", "helpers.py", "deep/inside.py", "scale.py"):
        before = Path(file).read_text()
        Path(file).write_text(before + "# mended\n")
        assert "reward.0.function (mine.py:reward) has changed" in why(recipe)
        Path(file).write_text(before)
    assert look(recipe) == []


def test_a_reward_of_a_module_is_its_source(recipe_dir: RecipeDir) -> None:
    Path("rewards").mkdir()
    Path("rewards/__init__.py").write_text("")
    Path("rewards/maths.py").write_text("from .same import equal\n")
    Path("rewards/same.py").write_text("equal = 1\n")
    made = load(recipe_dir.recipe({"reward": "[{type: function, function: 'rewards.maths:reward'}]"}))
    finished(made)
    assert look(made) == []
    Path("rewards/same.py").write_text("equal = 2\n")
    assert "reward.0.function (rewards.maths:reward) has changed" in why(made)


def test_other_weights_of_the_same_size_are_another_model(recipe: Recipe) -> None:
    finished(recipe)
    Path("model/README.md").write_text("a card is no part of a model")
    assert look(recipe) == []
    Path("model/model.safetensors").write_bytes(b"\1" * 16)
    assert "model.path (./model) has changed" in why(recipe)


def test_of_a_run_that_wrote_nothing_down_it_is_said(recipe: Recipe, capsys: pytest.CaptureFixture[str]) -> None:
    """As runs of earlier versions."""
    finished(recipe).inputs.unlink()
    assert run_recipe(recipe) == 0
    assert capsys.readouterr().out.rstrip().endswith("; what it was trained from was not written down")


# ------------------------------------------------------------------------------------------------ --fresh


def test_fresh_keeps_what_was_there(recipe: Recipe) -> None:
    said: list[str] = []
    for number in (1, 2):
        ledger = finished(recipe).ledger.read_bytes()
        settle(recipe, fresh=True, say=said.append)
        assert not Path("runs/arith").exists()
        assert Path(f"runs/arith.old-{number}/ledger.jsonl").read_bytes() == ledger
        assert Path(f"runs/arith.old-{number}/model/config.json").is_file()
    assert said == [
        f"arith begins anew: --fresh asks for it; what was there is kept as arith.old-{number}" for number in (1, 2)
    ]


def test_fresh_does_not_take_a_run_from_its_driver(recipe: Recipe) -> None:
    directory = finished(recipe)
    with directory.held(), pytest.raises(BadInput, match="is in use"):
        settle(recipe, fresh=True, say=print)
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
    made = load("both.yaml")
    finished(made, 0)
    finished(made, 1)
    assert look(made) == []
    return made


def test_a_stage_whose_model_was_trained_anew_is_refused(stages: Recipe) -> None:
    Path("runs/arith/model/config.json").write_text("{}")
    assert "model.path (runs/arith/model) has changed" in why(stages)


def test_a_stage_whose_model_is_about_to_be_trained_anew_is_refused_before_that(stages: Recipe) -> None:
    RunDirectory.open(Path("runs/arith")).set_aside()
    assert "model.path (runs/arith/model) is about to be trained anew" in why(stages)


def test_fresh_leaves_an_earlier_stage_that_has_not_changed(stages: Recipe) -> None:
    settle(stages, fresh=True, say=print)
    assert (Path("runs/arith").exists(), Path("runs/second").exists()) == (True, False)


def test_fresh_begins_everything_anew_that_comes_of_a_change(stages: Recipe) -> None:
    with open("demos.jsonl", "a") as opened:
        opened.write(json.dumps({"prompt": "9+1=", "completion": "10"}) + "\n")
    assert "data.dataset (./demos.jsonl) has changed" in why(stages)
    assert [found.directory.name for found in look(stages, fresh=True, last_too=False)] == ["arith", "second"]


# ------------------------------------------------------------------------------------------------ an unfinished run


@pytest.mark.parametrize("facts", [(), (Fact.planned, Fact.generated, Fact.scored, Fact.trained)])
def test_a_start_that_failed_does_not_keep_its_name(recipe: Recipe, facts: tuple[Fact, ...]) -> None:
    stopped(recipe, *facts)
    mended, said = load("recipe.yaml", ["rollout.max_completion_length=128"]), list[str]()
    settle(mended, say=said.append)
    assert said == [
        "arith begins anew: rollout.max_completion_length was 512 and is 128, and no step of it was finished; "
        "what was there is kept as arith.old-1"
    ]
    assert RunDirectory.create(mended.stages[-1], mended.text).config() == mended.stages[-1]


def test_a_run_with_a_finished_step_keeps_its_name(recipe: Recipe) -> None:
    stopped(recipe, Fact.planned, Fact.trained, Fact.committed)
    told = why(load("recipe.yaml", ["seed=3"]))
    assert "seed was 0 and is 3" in told
    assert "rlhf resume runs/arith" in told


def test_samples_of_other_prompts_are_not_learned_from(recipe: Recipe) -> None:
    """The first step was sampled, and would be taken from its file."""
    stopped(recipe, Fact.planned, Fact.generated)
    Path("prompts.jsonl").write_text('{"prompt": "7-1=", "solution": "6"}\n' * 4)
    (found,) = look(recipe)
    assert found.why == "data.prompts (./prompts.jsonl) has changed, and no step of it was finished"
    with pytest.raises(ResumeError, match=r"data\.prompts \(\./prompts\.jsonl\) has changed"):
        resume_run(Path("runs/arith"))


def test_nothing_was_done_with_what_has_changed_since(recipe: Recipe) -> None:
    directory = stopped(recipe)
    Path("prompts.jsonl").write_text('{"prompt": "7-1=", "solution": "6"}\n' * 4)
    assert look(recipe) == []
    refuse_other_inputs(directory, recipe.stages[-1])
    assert write_inputs(directory, recipe.stages[-1]) == []


def test_a_reward_may_be_mended_by_resume_and_is_told(recipe: Recipe) -> None:
    directory = stopped(recipe, Fact.generated, Fact.committed)
    Path("mine.py").write_text("def reward(completions, **_):\n    return [1.0] * len(completions)\n")
    told = why(recipe)
    assert "reward.0.function (mine.py:reward) has changed" in told
    assert "go on with what is there: rlhf resume runs/arith" in told
    refuse_other_inputs(directory, recipe.stages[-1])
    assert write_inputs(directory, recipe.stages[-1]) == [
        "reward.0.function (mine.py:reward) has changed since the last attempt: from here on it is the new one"
    ]
    assert look(recipe) == []
