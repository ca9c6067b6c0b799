"""Evaluation in the shipped recipes for GPUs: held-out data, safety prompts, the gate, and their validation."""

from __future__ import annotations

from pathlib import Path

import pytest
from shipped import CONFIGS, ON_GPUS, PROMPTS

from orchestrator.cli.main import main
from orchestrator.config import RunConfig, load
from orchestrator.config.recipe import Recipe
from orchestrator.data import read_prompts
from orchestrator.launch.package import Named, build_package
from orchestrator.pipeline.roles import gang_plans
from orchestrator.plan.gpus import GPUS
from orchestrator.plan.plan import make_plan
from orchestrator.plan.work import Lengths
from workers.config.rewards import compares

STAGES = [(path, stage) for path in ON_GPUS for stage in load(path).stages]
OF_PROMPTS = [(path, s) for path, s in STAGES if s.data.prompts is not None and s.algorithm.needs.trains]
OF_DATASETS = [(path, stage) for path, stage in STAGES if stage.data.dataset is not None]

ROWS = 62_000  # of UltraFeedback, about
IN_THE_RUN = ("data.eval_harmful=configs/eval/harmful.jsonl", "data.eval_benign=configs/eval/benign.jsonl")


def judges_pairs(stage: RunConfig) -> bool:
    """Return whether the stage can be evaluated on pairs: a reward model, or DPO with a reference.

    SFT and KTO have no pairs, and SimPO no reference to which an implicit reward is relative.
    """
    implicit = stage.algorithm.implicit_reward_beta is not None and stage.algorithm.needs_reference
    return stage.algorithm.needs.head == "scores" or implicit


def named(case: tuple[Path, RunConfig]) -> str:
    return case[1].name


@pytest.mark.parametrize("case", OF_PROMPTS, ids=named)
def test_a_recipe_that_samples_is_evaluated_and_guarded(case: tuple[Path, RunConfig]) -> None:
    _, stage = case
    assert stage.data.eval_harmful == "configs/eval/harmful.jsonl"
    assert stage.data.eval_benign == "configs/eval/benign.jsonl"
    assert (stage.data.eval_prompts is not None) == bool(stage.reward), "only a reward can judge held-out answers"
    steps, every = stage.algorithm.max_steps, stage.evaluation.every
    assert steps is not None
    assert every is not None
    assert steps // every >= 3, "one evaluation after each third of the run, at least"
    assert stage.alarms.safety_gate is not None


@pytest.mark.parametrize("case", OF_PROMPTS, ids=named)
def test_the_gate_allows_for_the_size_of_its_sets(case: tuple[Path, RunConfig]) -> None:
    """Check that one or two changed answers do not stop a run, and that one in eight does."""
    gate, stage = case[1].alarms.safety_gate, case[1]
    assert gate is not None
    for name, allowed in (("harmful", gate.max_refusal_fall), ("benign", gate.max_over_refusal_rise)):
        count = min(len(read_prompts(str(PROMPTS[name]))), stage.evaluation.max_prompts)
        assert 2 / count <= allowed < 1 / 8, name


@pytest.mark.parametrize("case", OF_PROMPTS, ids=named)
def test_held_out_prompts_have_what_the_reward_reads(case: tuple[Path, RunConfig]) -> None:
    _, stage = case
    instructions = "configs/eval/instructions.jsonl"
    by_reward = {"math": "configs/eval/maths.jsonl", "model": instructions, "judge": instructions}
    for reward in (reward for reward in stage.reward if not compares(reward)):  # one that compares reads nothing more
        assert stage.data.eval_prompts == by_reward[reward.type]


@pytest.mark.parametrize("case", OF_PROMPTS, ids=named)
def test_evaluation_needs_no_gpu_of_its_own(case: tuple[Path, RunConfig]) -> None:
    _, stage = case
    plain = stage.model_copy(update={"evaluation": type(stage.evaluation)()})
    assert [p.role for p in gang_plans(stage, cuda=True, max_steps=1)] == [
        p.role for p in gang_plans(plain, cuda=True, max_steps=1)
    ]


@pytest.mark.parametrize("path", ON_GPUS, ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_evaluation_takes_a_few_percent_of_the_time(path: Path) -> None:
    recipe = load(path)
    for stage in recipe.stages:
        trains = stage.algorithm.needs.trains
        lengths = Lengths(rows=ROWS if stage.data.dataset is not None or not trains else None)
        plan = make_plan(stage, GPUS["H100"], before=recipe.before(stage), lengths=lengths)
        assert plan.work.steps is not None
        assert plan.evaluations_s is not None
        evaluates = stage.data.prompts is not None or judges_pairs(stage)
        assert (plan.evaluations_s > 0) == (trains and evaluates)
        assert plan.evaluations_s <= 0.05 * plan.work.steps * plan.time.step_s, stage.name


@pytest.mark.parametrize("case", OF_DATASETS, ids=named)
def test_a_recipe_on_a_dataset_is_evaluated_on_other_pairs(case: tuple[Path, RunConfig]) -> None:
    _, stage = case
    assert (stage.data.eval_dataset is not None) == judges_pairs(stage)
    if stage.data.eval_dataset is not None:
        assert stage.evaluation.every is not None
        assert (stage.data.eval_dataset, stage.data.eval_split) != (stage.data.dataset, stage.data.split)


@pytest.mark.parametrize("path", ON_GPUS, ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_it_is_valid_where_its_paths_begin(
    path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(CONFIGS.parent)
    assert main(["validate", str(path.relative_to(CONFIGS.parent))]) == 0
    assert "is valid" in capsys.readouterr().out


@pytest.mark.parametrize("name", ["8b/dpo.yaml", "8b/kto.yaml", "8b/sft.yaml", "8b/simpo.yaml", "70b/dpo.yaml"])
def test_an_engine_makes_the_gate_part_of_a_run_on_a_dataset(name: str) -> None:
    recipe: Recipe = load(CONFIGS / name, IN_THE_RUN)
    assert {"rollout", "refusal"} <= {plan.role for plan in gang_plans(recipe.stages[-1], cuda=True, max_steps=1)}


@pytest.mark.parametrize("path", PROMPTS.values(), ids=lambda path: path.stem)
def test_a_job_gets_the_held_out_sets(path: Path) -> None:
    place = str(path.relative_to(CONFIGS.parent))
    assert list(build_package([Named(path=place, by="data.eval_prompts")], CONFIGS.parent).files) == [place]
