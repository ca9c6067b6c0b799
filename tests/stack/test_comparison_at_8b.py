"""The shipped comparison at 8B on the real stack, scaled down by overrides alone: tiny model, made pairs, one seed."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from attempts import Run
from families import read_jsonl, write_jsonl

from orchestrator.cli.main import main

pytestmark = [pytest.mark.stack, pytest.mark.slow, pytest.mark.long]

COMPARISON = Path(__file__).parents[2] / "configs" / "8b" / "compare.yaml"
GOLD = '{type: function, function: "scorers.py:letters_in_place", weight: 0.0}'
TRAINED_ON = "{type: model, from_stage: compare-8b-rm, dtype: float32}"
EVERY_STAGE = (
    "cluster={address: null, device: cpu}",
    "model.dtype=float32",
    "policy={num_ranks: 1, gradient_checkpointing: false, tokens_per_micro_batch: 2048}",
    "checkpoint.every=null",
)
EARLIER = (
    "stages.compare-8b-sft.model.path=model",
    "stages.compare-8b-sft.data={dataset: demonstrations.jsonl, max_length: 48}",
    "stages.compare-8b-sft.algorithm={max_steps: 12, batch_size: 64, learning_rate: 3.0e-3, lr_scheduler_type: linear}",
    "stages.compare-8b-rm.data={dataset: preferences.jsonl, eval_dataset: preferences.jsonl, max_length: 48}",
    "stages.compare-8b-rm.algorithm={max_steps: 4, batch_size: 32, learning_rate: 1.0e-3}",
    "stages.compare-8b-rm.evaluation.every=null",
)
EVERY_RUN = (
    "data={eval_prompts: heldout.jsonl, eval_harmful: null, eval_benign: null}",
    "rollout={num_engines: 1, max_prompt_length: 32, max_completion_length: 10}",
    "algorithm.learning_rate=1.0e-4",
    "algorithm.max_steps=2",
    "evaluation={every: null, max_prompts: 8}",
)
OF_METHODS = (
    *(f"methods.{name}.data.prompts=preferences.jsonl" for name in ("PPO", "GRPO", "iterative DPO")),
    *(f"methods.{name}.reward=[{TRAINED_ON}, {GOLD}]" for name in ("PPO", "GRPO", "iterative DPO")),
    f"methods.offline DPO.reward=[{GOLD}]",
    "methods.offline DPO.data={dataset: preferences.jsonl, max_length: 48}",
    "methods.PPO.critic={num_ranks: 1, gradient_checkpointing: false}",
    "methods.PPO.algorithm={prompts_per_step: 16, critic_learning_rate: 1.0e-3, warmup_steps: 0}",
    "methods.GRPO.algorithm={prompts_per_step: 8, num_generations: 4, warmup_steps: 0}",
    "methods.iterative DPO.algorithm={prompts_per_step: 8, num_generations: 4, batch_size: 4}",
    "methods.offline DPO.algorithm={batch_size: 32, num_train_epochs: 1}",
)
OF_THE_COMPARISON = (
    "seeds=[0]",
    "max_device_seconds=null",
    "parallel=2",
    "num_samples=3",
    "temperatures=[0.5]",
    "tasks.0={gold: letters_in_place, best_of_n: {n: [2]}}",
    "tasks.0.methods.0.sweep={algorithm.kl_coef: [0.02]}",
    "tasks.0.methods.1.sweep={algorithm.beta: [0.05]}",
    "tasks.0.methods.2.sweep={algorithm.beta: [0.1]}",
    "tasks.0.methods.3.sweep={algorithm.beta: [0.1]}",
)
OVERRIDES = (
    *OF_THE_COMPARISON,
    *(f"stages.*.{override}" for override in EVERY_STAGE),
    *EARLIER,
    *EVERY_RUN,
    *OF_METHODS,
)


def test_the_comparison_at_8b_runs_scaled_down_by_overrides_alone(
    head: None, qwen2: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(qwen2)
    pairs = [{**row, "solution": row["chosen"]} for row in read_jsonl(qwen2 / "pairs.jsonl")]  # for the gold scorer
    write_jsonl(qwen2 / "preferences.jsonl", pairs)
    assert main(["compare", str(COMPARISON), *OVERRIDES]) == 0, capsys.readouterr()
    comparison = qwen2 / "runs" / "compare-8b"
    names = ("PPO", "GRPO", "iterative-DPO", "offline-DPO")
    runs = {name: Run(next(comparison.glob(f"*--{name}--*"))) for name in names}
    for run in runs.values():
        assert run.exit["cause"] == "completed", run.exit
        first, last = run.figures("eval/kl")
        assert abs(last) > abs(first) == pytest.approx(0.0, abs=1e-4)
        assert len(run.figures("eval/reward_at_temperature_0.5")) == 2, "before the first step, and after the last"
    for stage in ("compare-8b-sft", "compare-8b-rm"):
        earlier = Run(qwen2 / "runs" / stage)
        assert earlier.exit["exit_code"] == 0
        assert sum(fact.startswith("ATTEMPT") for fact in earlier.facts) == 1, "trained once, for all methods"
    body = json.loads((comparison / "comparison.json").read_text())["tasks"][0]
    assert set(body["order"]) == {"PPO", "GRPO", "iterative DPO", "offline DPO", "best-of-n"}
    assert body["gold"] == "letters_in_place"
    assert {p["temperature"] for p in body["temperatures"]} == {0.0, 0.5, 1.0}
    (best_of_n,) = [p for p in body["points"] if p["method"] == "best-of-n"]
    assert best_of_n["kl"][0] == pytest.approx(0.6931 - 0.5, abs=1e-3)
    page = (comparison / "report.html").read_text()
    assert "the KL is an upper bound" in page
    assert "trained on it" not in page, "no method was trained on the gold scorer"
