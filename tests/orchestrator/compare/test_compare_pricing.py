"""The price of a comparison: shared stages once, measuring apart, and refusal of what does not fit."""

from __future__ import annotations

import pytest
from shipped import CONFIGS

from orchestrator.cli.main import main
from orchestrator.compare.pricing import price_comparison
from orchestrator.compare.recipe import load_comparison
from orchestrator.plan.gpus import GPUS

H100 = GPUS["H100"]
SIZES = {"8b": 16, "70b": 64}


@pytest.mark.parametrize(("size", "gpus"), SIZES.items())
def test_the_shipped_comparisons_fit_the_cluster_they_are_meant_for(size: str, gpus: int) -> None:
    comparison = load_comparison(CONFIGS / size / "compare.yaml")
    assert f"Meant for {gpus} GPUs" in comparison.source.read_text()
    price = price_comparison(comparison, H100, given=gpus)
    assert price.fits
    assert [one.method for one in price.shared] == [f"compare-{size}-sft", f"compare-{size}-rm"]
    assert sum(one.num_seeds for one in price.runs) == len(comparison.runs)
    assert price.gpu_seconds == pytest.approx(sum(one.gpu_seconds for one in (*price.shared, *price.runs)))
    budget = comparison.config.max_device_seconds
    assert budget is not None
    for one in price.runs:
        assert 0.3 * budget < one.method_gpu_seconds / one.num_seeds <= budget * 1.001, one.label
        assert one.method_gpu_seconds < one.gpu_seconds


@pytest.mark.parametrize("size", SIZES)
def test_methods_of_a_shipped_comparison_share_pairs_and_a_gold_scorer_that_none_trains_on(
    size: str,
) -> None:
    (task,) = load_comparison(CONFIGS / size / "compare.yaml").config.tasks
    runs = load_comparison(CONFIGS / size / "compare.yaml").runs
    assert {method.name for method in task.methods} == {"PPO", "GRPO", "iterative DPO", "offline DPO"}
    assert task.best_of_n is not None
    for run in runs:
        data = run.config.data
        assert {data.prompts, data.dataset} == {"trl-lib/ultrafeedback_binarized", None}
        assert (data.eval_prompts, data.eval_split, data.split) == ("trl-lib/ultrafeedback_binarized", "test", "train")
        (gold,) = [r for r in run.config.reward if getattr(r, "path", "").endswith(str(task.gold))]
        assert gold.weight == 0.0
        assert run.recipe.stages[0].name == f"compare-{size}-sft"
        assert run.config.model.path == f"runs/compare-{size}-sft/model"


def test_engines_and_scorer_of_an_offline_method_are_not_on_its_bill() -> None:
    comparison = load_comparison(CONFIGS / "8b" / "compare.yaml")
    price = price_comparison(comparison, H100, given=16)
    offline = next(one for one in price.runs if one.method == "offline DPO")
    bill = offline.price.method_gpu_seconds
    assert bill is not None
    assert set(bill) == {"policy", "reference"}
    ppo = next(one for one in price.runs if one.method == "PPO").price.method_gpu_seconds
    assert ppo is not None
    assert set(ppo) == {"policy", "critic", "reference", "rollout", "reward"}


def test_the_table_names_every_run_and_method(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["compare", str(CONFIGS / "8b" / "compare.yaml"), "--plan", "--gpus", "16xH100"]) == 0
    printed = capsys.readouterr().out
    for line in ("compare-8b-sft", "PPO kl_coef 0.02 × 3 seeds", "iterative DPO beta 0.1 × 3 seeds", "best-of-n"):
        assert printed.count(line) >= 1, line
    assert "Total: " in printed
    assert "at least" in printed
    assert "unknown" not in printed


def test_what_does_not_fit_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["compare", str(CONFIGS / "8b" / "compare.yaml"), "--plan", "--gpus", "12xH100"]) == 3
    printed = capsys.readouterr().out
    assert "does not fit: PPO kl_coef 0.02 × 3 seeds: needs 16 GPUs, of which 4 are missing" in printed
    assert "does not fit: GRPO" not in printed
    tight = ["methods.GRPO.policy.num_ranks=1", "methods.GRPO.policy.gradient_checkpointing=false"]
    assert main(["compare", str(CONFIGS / "8b" / "compare.yaml"), "--plan", *tight]) == 3
    assert "policy lacks" in capsys.readouterr().out


def test_a_budget_ends_the_price(capsys: pytest.CaptureFixture[str]) -> None:
    path = CONFIGS / "8b" / "compare.yaml"
    cheap = price_comparison(load_comparison(path, ["max_device_seconds=1000"]), H100, given=16)
    assert {round(one.method_gpu_seconds / one.num_seeds) for one in cheap.runs} == {1000}
