"""Schedules of rounds: the values of each round, and the configs that others read."""

from __future__ import annotations

from typing import Any

import pytest
from recipe_dir import RecipeDir

from orchestrator.cli.main import main
from orchestrator.config import RunConfig, load
from orchestrator.config.recipe import from_resolved, resolved
from orchestrator.config.rounds import (
    NumMixed,
    largest,
    learner_settings,
    mixed_per_round,
    of_round,
    prompts_per_round,
    round_values,
)

ROUNDS = "{type: dpo, prompts_per_step: 4, num_generations: 2, learning_rate: 1.0e-5, max_steps: 5}"


def config(recipe_dir: RecipeDir, rounds: str) -> RunConfig:
    return load(recipe_dir.recipe({"algorithm": ROUNDS, "rounds": rounds})).stages[0]


def values(run: RunConfig, name: str) -> list[Any]:
    return [round_values(run, index)[name] for index in range(5)]


def test_the_last_value_of_a_list_holds_for_later_rounds(recipe_dir: RecipeDir) -> None:
    run = config(recipe_dir, "{temperature: [0.8, 0.8, 1.3], num_generations: [4, 8]}")
    assert values(run, "temperature") == [0.8, 0.8, 1.3, 1.3, 1.3]
    assert values(run, "num_generations") == [4, 8, 8, 8, 8]
    assert [of_round(run, i).rollout.temperature for i in range(5)] == [0.8, 0.8, 1.3, 1.3, 1.3]


def test_a_linear_schedule_goes_from_the_first_round_to_the_last(recipe_dir: RecipeDir) -> None:
    run = config(recipe_dir, "{temperature: {first: 1.0, last: 0.6}, learning_rate: {first: 1.0e-6, last: 5.0e-6}}")
    assert values(run, "temperature") == pytest.approx([1.0, 0.9, 0.8, 0.7, 0.6])
    assert values(run, "learning_rate") == pytest.approx([1e-6, 2e-6, 3e-6, 4e-6, 5e-6])
    single = run.model_copy(update={"algorithm": run.algorithm.model_copy(update={"max_steps": 1})})
    assert round_values(single, 0)["temperature"] == 1.0


def test_a_schedule_replaces_the_value_of_its_section_alone(recipe_dir: RecipeDir) -> None:
    run = config(recipe_dir, "{beta: [0.1, 0.2]}")
    own, same = of_round(run, 1), of_round(run, 1).model_copy(update={"algorithm": run.algorithm})
    assert own.algorithm.implicit_reward_beta == 0.2
    assert same == run
    plain = config(recipe_dir, "{}")
    assert of_round(plain, 3) is plain


def test_learners_get_what_concerns_their_loss(recipe_dir: RecipeDir) -> None:
    run = config(recipe_dir, "{temperature: [0.8], beta: [0.1, 0.3], num_iterations: [2], learning_rate: [1.0e-6]}")
    assert learner_settings(run, 1) == {"beta": 0.3, "num_iterations": 2, "learning_rate": 1e-6}
    assert learner_settings(config(recipe_dir, "{temperature: [0.8]}"), 1) == {}
    assert learner_settings(config(recipe_dir, "{policy: base}"), 0) == {"reset_optimizer": True}


def test_the_largest_round_has_the_largest_value_of_each_schedule(recipe_dir: RecipeDir) -> None:
    run = config(recipe_dir, "{num_generations: [4, 16, 8], prompts_per_step: [8, 2], beta: {first: 0.3, last: 0.1}}")
    algorithm: Any = largest(run).algorithm
    assert (algorithm.num_generations, algorithm.prompts_per_step, algorithm.beta) == (16, 8, 0.3)
    assert prompts_per_round(run) == (8, 2, 2, 2, 2)


def test_pairs_are_mixed_in_by_the_prompts_of_a_round_and_none_before_the_second(recipe_dir: RecipeDir) -> None:
    run = config(recipe_dir, "{mix: {earlier_rounds: 0.5}, prompts_per_step: [4, 10]}")
    assert [of.earlier for of in mixed_per_round(run)] == [0, 5, 5, 5, 5]
    data = "{prompts: ./prompts.jsonl, dataset: ./pairs.jsonl}"
    both = {"algorithm": ROUNDS, "rounds": "{mix: {dataset: 0.25, earlier_rounds: 1}}", "data": data}
    assert mixed_per_round(load(recipe_dir.recipe(both)).stages[0])[:2] == (
        NumMixed(earlier=0, dataset=1),
        NumMixed(earlier=4, dataset=1),
    )
    assert main(["validate", recipe_dir.recipe(both)]) == 0, "a dataset smaller than a batch is enough to mix in"


def test_schedules_come_back_from_the_resolved_config(recipe_dir: RecipeDir) -> None:
    run = config(recipe_dir, "{temperature: [0.8, 1.3], beta: {first: 0.1, last: 0.2}, prompts: fixed, policy: base}")
    assert from_resolved(resolved(run), "resolved.json") == run
