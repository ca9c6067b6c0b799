"""Tests of `rlhf advise`: what fits, what would change the advice, its output and its errors."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from recipe_dir import RecipeDir

from orchestrator.advise import advice as module
from orchestrator.advise.advice import Advice, advise
from orchestrator.advise.facts import Facts
from orchestrator.advise.feasibility import Cluster, Feasibility
from orchestrator.advise.methods import RECIPES, REWARD_MODEL, Method, recipe_of
from orchestrator.advise.reading import read
from orchestrator.advise.rules import ENOUGH_PAIRS, METHODS
from orchestrator.advise.show import as_json, assumed, measured
from orchestrator.cli.main import main
from orchestrator.config import load
from orchestrator.errors import BadInput
from orchestrator.plan.gpus import parse_gpus

ROOT = Path(__file__).parents[3]
HEAVY = ("torch", "ray", "vllm", "deepspeed", "transformers", "datasets", "wandb", "peft")
Golden = Callable[[str, str], None]
PAIR = {"prompt": "1+1=", "chosen": "22", "rejected": "3"}
LABEL = {"prompt": "1+1=", "completion": "2", "label": True}


# ------------------------------------------------------------------------------------------------ recipes that fit


def pairs(count: int, **more: Any) -> list[dict[str, Any]]:
    return [{"prompt": f"What is {i}?", "chosen": f"It is {i}.", "rejected": f"Not {i}.", **more} for i in range(count)]


def advice_for(
    recipe_dir: RecipeDir, rows: list[dict[str, Any]], gpus: str, model: str | None = None, **more: Any
) -> Advice:
    recipe_dir.jsonl("data.jsonl", list(rows))
    return advise(["data.jsonl"], *parse_gpus(gpus), model=model, verifiable=more.get("verifiable", False))


@pytest.mark.parametrize("model", [None, "llama-3-70b"])
@pytest.mark.parametrize("kind", ["pairs", "prompts", "labels", "demonstrations", "solutions"])
def test_what_is_advised_is_a_recipe_that_fits(recipe_dir: RecipeDir, kind: str, model: str | None) -> None:
    rows: dict[str, list[dict[str, Any]]] = {
        "pairs": pairs(ENOUGH_PAIRS),
        "prompts": [{"prompt": f"{i}"} for i in range(50)],
        "labels": [{"prompt": f"{i}", "completion": "a", "label": i % 3 == 0} for i in range(50)],
        "demonstrations": [{"prompt": f"{i}", "completion": "a"} for i in range(50)],
        "solutions": [{"prompt": f"{i}", "solution": f"{i}"} for i in range(50)],
    }
    found = advice_for(recipe_dir, rows[kind], "64xH100", model)
    for choice in filter(None, (found.first, found.runner_up)):
        command = shlex.split(choice.fit.command)
        assert command[:2] == ["rlhf", "run"]
        recipe = load(command[2], [o.replace(REWARD_MODEL, "llama-3-8b") for o in command[3:]])
        for config, plan in zip(recipe.stages, choice.fit.plans, strict=True):
            replanned = module.Cluster._plan(found.cluster, recipe, config)
            assert replanned.fits, (choice.method, config.name)
            assert replanned.time.step_s == pytest.approx(plan.best.time.step_s)
        named = {name for config in recipe.stages for name in (config.data.prompts, config.data.dataset)}
        assert named - {None} == {"data.jsonl"}
        for data in (config.data for config in recipe.stages):
            assert (data.eval_prompts, data.eval_dataset) == (None, None), "the recipe's, unrelated to these data"
            assert all(Path(source).is_file() for source in (data.eval_harmful, data.eval_benign) if source is not None)


def test_costs_add_up_over_stages(recipe_dir: RecipeDir) -> None:
    fit = advice_for(recipe_dir, pairs(ENOUGH_PAIRS), "16xH100").first.fit
    assert fit.method == Method.iterative_dpo_rm
    hours = [p.best.time.step_s * p.best.num_gpus * (p.work.steps or 0) / 3600 for p in fit.plans]
    assert fit.plans[0].work.steps == -(-ENOUGH_PAIRS // 128)  # one pass, 128 pairs a step
    assert fit.gpu_hours == pytest.approx(sum(hours))
    assert fit.dollars == pytest.approx(2.5 * sum(hours))


def test_a_cluster_too_small_for_samples(recipe_dir: RecipeDir) -> None:
    """Check 70B on 8 H100: engine, reference and learner do not fit together, DPO with an offloaded optimiser does."""
    found = advice_for(recipe_dir, pairs(ENOUGH_PAIRS), "8xH100", "llama-3-70b")
    assert found.first.method == Method.dpo
    assert not found.first.fit.adapted
    assert load(found.first.fit.recipe, found.first.fit.overrides).stages[-1].policy.offload_optimizer
    assert Method.iterative_dpo_rm in {fit.method for fit in found.infeasible}
    needed = next(fit for fit in found.infeasible if fit.method == Method.iterative_dpo_rm).fewest
    assert needed is not None
    assert needed > 8
    assert any(c.what == f"there were {needed} H100" and c.then == Method.iterative_dpo_rm for c in found.changes)
    larger = advice_for(recipe_dir, pairs(ENOUGH_PAIRS), f"{needed}xH100", "llama-3-70b")
    assert larger.first.method == Method.iterative_dpo_rm


@pytest.mark.parametrize("gpus", ["4xH100", "6xH100"])
def test_a_cluster_too_small_for_all_weights(recipe_dir: RecipeDir, gpus: str) -> None:
    """Check 70B where not even sharded weights fit: DPO with LoRA, at ten times the learning rate."""
    found = advice_for(recipe_dir, pairs(ENOUGH_PAIRS), gpus, "llama-3-70b")
    assert found.first.method == Method.dpo
    assert found.first.fit.adapted == {"dpo-70b"}
    learning_rate = load(found.first.fit.recipe, found.first.fit.overrides).stages[-1].algorithm.learning_rate
    assert learning_rate == pytest.approx(10 * load(found.first.fit.recipe).stages[-1].algorithm.learning_rate)


def test_prompts_that_can_be_checked_are_preferred(recipe_dir: RecipeDir) -> None:
    recipe_dir.jsonl("checked.jsonl", [{"prompt": f"{i}", "tests": ["assert f()"] if i else None} for i in range(20)])
    recipe_dir.jsonl("data.jsonl", list(pairs(100)))
    found = advise(["data.jsonl", "checked.jsonl"], *parse_gpus("16xH100"), model=None, verifiable=False)
    config = load(found.first.fit.recipe, found.first.fit.overrides).stages[-1]
    assert (config.data.prompts, config.reward[0].type) == ("checked.jsonl", "code")


def test_a_70b_model_has_no_larger_teacher(recipe_dir: RecipeDir) -> None:
    prompts = [{"prompt": f"{i}"} for i in range(10)]
    small, large = (advice_for(recipe_dir, prompts, "64xH100", model).runner_up for model in (None, "llama-3-70b"))
    assert small is not None
    assert (small.method, large) == (Method.distill, None)


def test_the_given_model_replaces_that_of_the_recipe(recipe_dir: RecipeDir) -> None:
    config = {"hidden_size": 4096, "num_hidden_layers": 32, "num_attention_heads": 32, "num_key_value_heads": 8}
    body = {**config, "intermediate_size": 14336, "vocab_size": 128256}
    (recipe_dir.path / "model" / "config.json").write_text(json.dumps(body))
    local = advice_for(recipe_dir, pairs(ENOUGH_PAIRS), "16xH100", "./model")
    stages = load(local.first.fit.recipe, local.first.fit.overrides).stages
    assert {stage.model.path for stage in stages} == {"./model"}
    named = advice_for(recipe_dir, pairs(10), "16xH100", "llama-3-8b")  # a name of the planner's table cannot be loaded
    assert not any(o.startswith("model.path") for o in named.first.fit.overrides)


# ------------------------------------------------------------------------------------------------ changes of the data


def test_changes_of_the_data_change_the_advice(recipe_dir: RecipeDir) -> None:
    """Check each listed change by making it in the data."""
    advisers: dict[str, Callable[[], Advice]] = {
        "the answers could be checked": lambda: advice_for(recipe_dir, pairs(ENOUGH_PAIRS, solution="1"), "16xH100"),
        "most completions were this model's own": lambda: advice_for(
            recipe_dir, pairs(ENOUGH_PAIRS, model="Llama-3.1-8B-Instruct"), "16xH100", "llama-3-8b"
        ),
        f"there were fewer than {ENOUGH_PAIRS}": lambda: advice_for(recipe_dir, pairs(ENOUGH_PAIRS - 1), "16xH100"),
    }
    changes = advice_for(recipe_dir, pairs(ENOUGH_PAIRS), "16xH100").changes
    assert len(changes) == len(advisers)
    for beginning, changed in advisers.items():
        change = next(change for change in changes if change.what.startswith(beginning))
        assert changed().first.method == change.then


def test_advice_lists_what_was_assumed_and_measured(recipe_dir: RecipeDir) -> None:
    bare = advice_for(recipe_dir, pairs(10), "16xH100")
    assert any("annotators agree as usual" in line for line in assumed(bare))
    assert any("written by other models" in line for line in assumed(bare))
    assert any("4 bytes per token" in line for line in assumed(bare))
    assert any("the model is meta-llama" in line for line in assumed(bare))
    annotated = pairs(10, votes=[True, False], model="Llama-3.1-8B-Instruct")
    rich = advice_for(recipe_dir, annotated, "16xH100", "llama-3-8b")
    assert not any("agree" in line or "other models" in line or "the model is" in line for line in assumed(rich))
    assert any("two annotators agree on 0%" in line for line in measured(rich))
    assert any("100% are this model's own" in line for line in measured(rich))
    declared = advice_for(recipe_dir, [{"prompt": "x"}], "16xH100", verifiable=True)
    assert any("rewards.py" in line for line in assumed(declared))
    assert declared.first.method == Method.grpo
    assert "--verifiable" in " ".join(as_json(declared)["given"])


def test_sft_on_demonstrations_comes_before_pairs(recipe_dir: RecipeDir) -> None:
    recipe_dir.jsonl("more.jsonl", [{"prompt": "a", "completion": "b"}])
    recipe_dir.jsonl("data.jsonl", list(pairs(10)))
    found = advise(["data.jsonl", "more.jsonl"], *parse_gpus("16xH100"), model=None, verifiable=False)
    assert found.first.method == Method.dpo
    assert found.before is not None
    assert "data.dataset=more.jsonl" in found.before.command
    assert advice_for(recipe_dir, pairs(10), "16xH100").before is None


# ------------------------------------------------------------------------------------------------ the command


def test_output_as_text_and_json(recipe_dir: RecipeDir, capsys: pytest.CaptureFixture[str]) -> None:
    recipe_dir.jsonl("data.jsonl", list(pairs(ENOUGH_PAIRS)))
    assert main(["advise", "data.jsonl", "--gpus", "16xH100"]) == 0
    page = capsys.readouterr().out
    for heading in (
        "Try first: reward model, then iterative DPO",
        "Runner-up: offline DPO",
        "Measured",
        "Assumed",
        "why:",
    ):
        assert heading in page
    assert max(map(len, page.splitlines())) <= 100
    assert main(["advise", "data.jsonl", "--gpus", "16xH100", "--json"]) == 0
    body = json.loads(capsys.readouterr().out)
    assert (body["first"]["method"], body["runner_up"]["method"]) == ("iterative_dpo_rm", "dpo")
    assert body["first"]["recipe"].endswith("configs/8b/iterative_dpo_reward_model.yaml")
    assert body["first"]["command"].replace(" \\\n", "") in " ".join(page.replace("\\\n", " ").split())
    assert body["facts"]["pairs"] == ENOUGH_PAIRS


def test_it_imports_nothing_heavy_and_is_quick(recipe_dir: RecipeDir) -> None:
    recipe_dir.jsonl("data.jsonl", list(pairs(ENOUGH_PAIRS)))
    script = (
        "import sys, resource; from orchestrator.cli.main import main\n"
        "assert main(['advise', 'data.jsonl', '--gpus', '64xH100', '--model', 'llama-3-70b']) == 0\n"
        f"assert not [name for name in {HEAVY!r} if name in sys.modules]\n"
        "assert resource.getrusage(resource.RUSAGE_SELF).ru_utime < 5\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script],
        cwd=recipe_dir.path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")


BAD: dict[str, tuple[list[dict[str, Any]] | None, list[str]]] = {
    "advise-not-there": (None, ["--gpus", "8xH100"]),
    "advise-unknown-columns": ([{"question": "1+1=", "response": "2"}], ["--gpus", "8xH100"]),
    "advise-stepwise": ([{"prompt": "a", "completions": ["b"], "labels": [True]}], ["--gpus", "8xH100"]),
    "advise-no-rows": ([], ["--gpus", "8xH100"]),
    "advise-how-many": ([PAIR], ["--gpus", "H100"]),
    "advise-unknown-gpu": ([PAIR], ["--gpus", "8xV100"]),
    "advise-unknown-model": ([PAIR], ["--gpus", "8xH100", "--model", "nobodys-model"]),
    "advise-nothing-to-check": (
        [{"chosen": "1+1= 2", "rejected": "1+1= 3"}],
        ["--gpus", "8xH100", "--verifiable"],
    ),
    "advise-no-room": ([PAIR], ["--gpus", "1xH100", "--model", "llama-3-70b"]),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input_is_reported(
    name: str, recipe_dir: RecipeDir, golden: Golden, capsys: pytest.CaptureFixture[str]
) -> None:
    rows, options = BAD[name]
    if rows is not None:
        recipe_dir.jsonl("data.jsonl", list(rows))
    assert main(["advise", "data.jsonl", *options]) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert "fix:" in printed.err
    golden(name, printed.err)


def test_all_errors_are_reported_at_once(recipe_dir: RecipeDir) -> None:
    recipe_dir.jsonl("bad.jsonl", [{"prompt": 3, "chosen": "a", "rejected": "b"}])
    with pytest.raises(BadInput) as refused:
        advise(["bad.jsonl", "missing.jsonl", "missing.jsonl"], *parse_gpus("8xH100"), model=None, verifiable=False)
    assert len(refused.value.problems) == 3
    assert "given twice" in str(refused.value)


def test_every_recipe_is_there() -> None:
    assert set(RECIPES) == set(Method)
    for method in Method:
        for large in (False, True):
            assert load(recipe_of(method, large=large)).stages
    assert Counter(rule.method for rule in METHODS).keys() == set(Method)


def test_without_the_projects_recipes(recipe_dir: RecipeDir, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(RECIPES, Method.dpo, ("8b/gone.yaml", "70b/gone.yaml"))  # type: ignore[misc]
    with pytest.raises(BadInput, match="checkout"):
        advice_for(recipe_dir, pairs(10), "8xH100")


def test_methods_without_data_have_no_fit(recipe_dir: RecipeDir) -> None:
    """Check that a file of labels gives no data for methods on pairs."""
    recipe_dir.jsonl("labels.jsonl", [LABEL, {**LABEL, "completion": "3", "label": False}])
    sources = tuple(read(["labels.jsonl"]))
    count, gpu = parse_gpus("8xH100")
    assert count is not None
    cluster = Cluster(gpu=gpu, num_gpus=count, model=None, large=False, sources=sources, facts=Facts(good=1, bad=1))
    assert cluster.fit(Method.dpo) is None
    assert cluster.fit(Method.ppo_rm) is None
    assert isinstance(cluster.fit(Method.kto), Feasibility)
