"""Gangs of the recipes, and the arguments that their members are started with."""

from __future__ import annotations

import inspect
import os
from pathlib import Path
from typing import Any

import pytest
from shipped import CONFIGS, QUICKSTART

from orchestrator.config import RunConfig, load
from orchestrator.pipeline.roles import absolute, gang_plans
from workers.config import ModelConfig

GANGS = {
    "abstention.yaml": {"policy": 2, "reference": 1, "rollout": 1, "reward": 1, "refusal": 1, "dataset": 1},
    "constitutional.yaml": {"policy": 2, "reference": 1, "rollout": 1, "reward": 1, "dataset": 1},
    "hybrid.yaml": {"policy": 2, "critic": 1, "reference": 1, "rollout": 1, "reward": 1},
    "reasoning.yaml": {"policy": 2, "rollout": 1, "reward": 1, "dataset": 1},
    "notes.yaml": {"policy": 2, "dataset": 1},
    "multi_objective.yaml": {"policy": 2, "rollout": 1, "reward": 1},
    "two_headed_reward.yaml": {"policy": 2, "reference": 1, "rollout": 1, "reward": 1},
    "base.yaml": {"policy": 2, "dataset": 1},
    "distill.yaml": {"policy": 2, "teacher": 1, "rollout": 1, "reward": 1},
    "dapo.yaml": {"policy": 2, "rollout": 1, "reward": 1},
    "dr_grpo.yaml": {"policy": 2, "rollout": 1, "reward": 1},
    "gspo.yaml": {"policy": 2, "rollout": 1, "reward": 1},
    "reinforce_pp.yaml": {"policy": 2, "reference": 1, "rollout": 1, "reward": 1},
    "rloo.yaml": {"policy": 2, "reference": 1, "rollout": 1, "reward": 1},
    "grpo.yaml": {"policy": 2, "rollout": 1, "reward": 1},
    "grpo_lora.yaml": {"policy": 2, "rollout": 1, "reward": 1},
    "ipo.yaml": {"policy": 2, "reference": 1, "rollout": 1, "reward": 1, "dataset": 1},
    "rlhf_classic.yaml": {"policy": 2, "critic": 1, "reference": 1, "rollout": 1, "reward": 1},
    "rejection_sampling.yaml": {"policy": 2, "rollout": 1, "reward": 1},
    "reward_model.yaml": {"policy": 2, "dataset": 1},
    "iterative_dpo.yaml": {"policy": 2, "reference": 1, "rollout": 1, "reward": 1},
    "kto.yaml": {"policy": 2, "reference": 1, "rollout": 1, "reward": 1, "dataset": 1},
    "offline_dpo.yaml": {"policy": 2, "reference": 1, "rollout": 1, "reward": 1, "dataset": 1},
    "ppo.yaml": {"policy": 2, "critic": 1, "reference": 1, "rollout": 1, "reward": 1},
    "simpo.yaml": {"policy": 2, "rollout": 1, "reward": 1, "dataset": 1},
}


def config(recipe: str, *overrides: str) -> RunConfig:
    return load(CONFIGS / "quickstart" / recipe, overrides).stages[-1]


def test_every_quickstart_recipe_is_listed_here() -> None:
    assert {path.name for path in QUICKSTART} == set(GANGS)


@pytest.mark.parametrize("recipe", GANGS)
def test_gangs_of_the_quickstart(recipe: str) -> None:
    plans = gang_plans(config(recipe), cuda=False, max_steps=4)
    assert {p.role: len(p.arguments) for p in plans} == GANGS[recipe]
    assert [p.role for p in plans] == list(GANGS[recipe])  # the policy first
    assert {p.resources.gpus for p in plans} == {0}
    assert {p.resources.cpus for p in plans} == {1.0}


@pytest.mark.parametrize("cuda", [False, True])
@pytest.mark.parametrize("recipe", GANGS)
def test_every_member_can_be_started_with_what_it_is_given(recipe: str, cuda: bool) -> None:
    for plan in gang_plans(config(recipe), cuda=cuda, max_steps=4):
        rendezvous: dict[str, Any] = {"address": "", "port": 0} if plan.meet else {}
        for arguments in plan.arguments:
            inspect.signature(plan.start).bind(**arguments, **rendezvous)
        ranks = [arguments.get("rank", arguments.get("index", 0)) for arguments in plan.arguments]
        assert ranks == list(range(len(plan.arguments)))


@pytest.mark.parametrize("recipe", ["base.yaml", "ipo.yaml", "kto.yaml"])
def test_only_kto_compares_with_mismatched_completions(recipe: str) -> None:
    (plan,) = [p for p in gang_plans(config(recipe), cuda=False, max_steps=4) if p.role == "dataset"]
    assert plan.arguments[0]["mismatched"] == (recipe == "kto.yaml")


def test_a_run_that_generates_data_has_no_learner() -> None:
    samples = load(CONFIGS / "quickstart" / "abstention.yaml").stages[1]
    assert {p.role: len(p.arguments) for p in gang_plans(samples, cuda=True, max_steps=4)} == {
        "rollout": 1,
        "reward": 1,
        "writer": 1,
    }


def test_gpus_go_to_the_gangs_that_compute() -> None:
    wide = config("ppo.yaml", "rollout.tensor_parallel_size=4", "rollout.num_engines=2")
    plans = gang_plans(wide, cuda=True, max_steps=4)
    assert {p.role: p.resources.gpus for p in plans} == {
        "policy": 1,
        "critic": 1,
        "reference": 1,
        "rollout": 4,
        "reward": 0,
    }
    assert {p.role for p in plans if p.meet} == {"policy", "critic", "reference"}


def test_policy_and_critic_differ_in_head_and_settings() -> None:
    policy, critic = gang_plans(config("ppo.yaml", "critic.tokens_per_micro_batch=512"), cuda=False, max_steps=7)[:2]
    assert [a["head"] for a in policy.arguments] == ["logprobs"] * 2
    assert [a["head"] for a in critic.arguments] == ["values"]
    assert (policy.arguments[0]["config"].tokens_per_micro_batch, policy.arguments[0]["max_steps"]) == (8192, 7)
    assert critic.arguments[0]["config"].tokens_per_micro_batch == 512
    unset = config("ppo.yaml", "critic=null")
    assert gang_plans(unset, cuda=False, max_steps=7)[1].arguments[0]["config"] == unset.policy


def test_an_evaluation_needs_engines_even_if_training_does_not() -> None:
    evaluated = config("base.yaml", "data.eval_prompts=heldout.jsonl", "reward=[{type: math}]", "evaluation.every=50")
    roles = [p.role for p in gang_plans(evaluated, cuda=False, max_steps=4)]
    assert roles == ["policy", "rollout", "reward", "dataset"]


def test_refusals_are_detected_by_a_gang_of_their_own() -> None:
    safe = config("iterative_dpo.yaml", "data.eval_harmful=harmful.jsonl", "data.eval_benign=benign.jsonl")
    plans = {p.role: p for p in gang_plans(safe, cuda=False, max_steps=3)}
    assert [c.type for c in plans["refusal"].arguments[0]["configs"]] == ["refusal"]
    assert "refusal" not in [c.type for c in plans["reward"].arguments[0]["configs"]]
    offline = config("offline_dpo.yaml", "data.eval_prompts=null", "reward=[]", "data.eval_harmful=harmful.jsonl")
    assert {"rollout", "refusal"} <= {p.role for p in gang_plans(offline, cuda=False, max_steps=3)}


def test_a_reference_without_a_coefficient_is_not_loaded() -> None:
    def roles(recipe: str, *overrides: str) -> set[str]:
        return {p.role for p in gang_plans(config(recipe, *overrides), cuda=False, max_steps=4)}

    assert "reference" in roles("grpo.yaml", "algorithm.beta=0.1")
    assert "reference" not in roles("ppo.yaml", "algorithm.kl_coef=0.0")


def test_the_policy_gets_the_model_of_its_teacher() -> None:
    def plans(*overrides: str) -> dict[str, Any]:
        return {p.role: p for p in gang_plans(config("distill.yaml", *overrides), cuda=False, max_steps=4)}

    divergence = plans("teacher.num_ranks=2", "teacher.zero_stage=3")
    models = [a["teacher"] for a in divergence["policy"].arguments]
    assert models == [a["model"] for a in divergence["teacher"].arguments]
    assert all(model.path.endswith("runs/quickstart-grpo/model") for model in models)
    assert {a["config"].zero_stage for a in divergence["teacher"].arguments} == {3}
    nothing_scores = plans("reward=[]", "data.eval_prompts=null", "evaluation.every=null")
    assert "reward" not in nothing_scores


def test_engines_that_sample_for_a_student_hold_its_teacher() -> None:
    sampled = config("distill.yaml", "algorithm.sampler=teacher", "data.eval_prompts=null", "evaluation.every=null")
    (rollout,) = [p for p in gang_plans(sampled, cuda=False, max_steps=4) if p.role == "rollout"]
    inspect.signature(rollout.start).bind(**rollout.arguments[0])
    assert rollout.arguments[0]["model"].path.endswith("runs/quickstart-grpo/model")
    assert rollout.arguments[0]["student"].path.endswith("runs/quickstart-base/model")


def test_adapters_need_a_reference_only_if_it_is_refreshed() -> None:
    adapted = "model.lora={r: 8}"
    for recipe in ("ppo.yaml", "iterative_dpo.yaml"):
        plans = gang_plans(config(recipe, adapted, "reference={refresh: never}"), cuda=False, max_steps=4)
        assert "reference" not in {p.role for p in plans}
    moving = gang_plans(config("iterative_dpo.yaml", adapted), cuda=False, max_steps=4)
    lora = {p.role: p.arguments[0]["model"].lora for p in moving if p.role in ("policy", "reference", "rollout")}
    assert lora["policy"] is not None
    assert lora["policy"] == lora["rollout"]
    assert lora["reference"] is None, "it loads merged models"


def test_no_secret_and_no_accelerator_on_a_cpu() -> None:
    environments = {
        p.role: dict(p.resources.environment) for p in gang_plans(config("ppo.yaml"), cuda=False, max_steps=4)
    }
    assert environments["policy"]["DS_ACCELERATOR"] == "cpu"
    assert environments["rollout"]["VLLM_ENABLE_V1_MULTIPROCESSING"] == "0"
    assert all(environment["OMP_NUM_THREADS"] == "1" for environment in environments.values())
    assert not [
        name for e in environments.values() for name in e if "TOKEN" in name and name != "TOKENIZERS_PARALLELISM"
    ]


def test_paths_are_absolute_where_actors_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "model").mkdir()
    assert absolute(ModelConfig(path="model")).path == os.path.join(tmp_path, "model")
    assert absolute(ModelConfig(path="Qwen/Qwen3-0.6B")).path == "Qwen/Qwen3-0.6B"
    (reward,) = [p for p in gang_plans(config("grpo.yaml"), cuda=False, max_steps=4) if p.role == "reward"]
    (scorer,) = reward.arguments[0]["configs"]
    assert scorer.function == f"{tmp_path}/configs/quickstart/task.py:exact_sort"


def test_the_evaluation_gets_the_base_model_if_no_reference_keeps_it() -> None:
    def roles(recipe: str, *overrides: str) -> set[str]:
        given = config(recipe, "evaluation={num_samples: 4}", *overrides)
        return {p.role for p in gang_plans(given, cuda=False, max_steps=4)}

    assert "base" in roles("grpo.yaml")  # without a KL it has no reference
    assert "base" not in roles("grpo.yaml", "algorithm.beta=0.1")
    assert "base" in roles("iterative_dpo.yaml")  # its reference is refreshed
    assert "base" not in roles("iterative_dpo.yaml", "reference.refresh=never")
    assert "base" not in roles("grpo_lora.yaml")  # it is under the adapters
    assert "base" not in {p.role for p in gang_plans(config("grpo.yaml"), cuda=False, max_steps=4)}


def test_a_reference_of_another_model_has_a_gang_of_its_own_and_checks_its_tokenizer() -> None:
    plain = config("iterative_dpo.yaml", "reference.refresh=never")
    other = config("iterative_dpo.yaml", "reference.refresh=never", "reference.path=another/model")
    (without,), (given,) = (
        [plan.arguments[0] for plan in gang_plans(run, cuda=False, max_steps=1) if plan.role == "reference"]
        for run in (plain, other)
    )
    assert "policy" not in without
    assert (given["model"].path, given["policy"]) == ("another/model", without["model"])


def test_with_adapters_another_reference_is_not_the_model_under_them() -> None:
    lora, path = "model.lora={r: 4}", "reference.path=another/model"
    same = gang_plans(config("offline_dpo.yaml", lora), cuda=False, max_steps=1)
    other = gang_plans(config("offline_dpo.yaml", lora, path), cuda=False, max_steps=1)
    assert [plan.role for plan in other if plan not in same] == ["reference"]


def test_the_kl_to_the_initial_model_needs_it_beside_another_reference() -> None:
    overrides = ("reference.refresh=never", "evaluation.num_samples=2", "data.eval_prompts=held-out.jsonl")
    for path, roles in ((), set()), (("reference.path=another/model",), {"base"}):
        plans = gang_plans(config("iterative_dpo.yaml", *overrides, *path), cuda=False, max_steps=1)
        assert {plan.role for plan in plans} & {"base"} == roles
