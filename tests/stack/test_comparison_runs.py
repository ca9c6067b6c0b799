"""End-to-end test of `rlhf compare`: real runs, each up to its budget, and the report page."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from attempts import RECIPES, Run

from orchestrator.cli.main import main

pytestmark = pytest.mark.stack

BUDGET = 6.0
MAX_STEPS = 10_000  # hours of steps: on any machine the budget ends the runs
COMPARE = f"""
name: two
seeds: [0]
max_device_seconds: {BUDGET}
num_samples: 2
tasks:
  - name: letters
    gold: letters_in_place
    overrides:
      data.eval_prompts: heldout.jsonl
      evaluation.max_prompts: 24
      evaluation.every: 10
      algorithm.max_steps: {MAX_STEPS}
      rollout.max_prompt_length: 32
      rollout.max_completion_length: 10
    methods:
      - {{name: GRPO, recipe: {RECIPES}/grpo.yaml}}
      - name: offline DPO
        recipe: {RECIPES}/offline.yaml
        overrides:
          reward: [{{type: function, function: "scorers.py:letters_in_place"}}]
          algorithm.num_train_epochs: {MAX_STEPS}
"""


def test_methods_are_run_to_their_budget_and_reported_on_one_page(
    finished: Callable[..., Run], qwen2: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    finished("base", qwen2)
    monkeypatch.chdir(qwen2)
    (qwen2 / "two.yaml").write_text(COMPARE)
    assert main(["compare", "two.yaml"]) == 0, capsys.readouterr()
    comparison = qwen2 / "runs" / "two"
    runs = [Run(comparison / f"letters--{method}--seed-0") for method in ("GRPO", "offline-DPO")]
    for run in runs:
        assert run.exit["cause"] == "budget", run.exit
        assert run.exit["exit_code"] == 0
        steps = len([fact for fact in run.facts if fact.startswith("COMMITTED")])
        assert 1 <= steps < MAX_STEPS
        evaluated = {int(path.stem.partition("-")[2]) for path in (run.path / "evaluations").glob("step-*.parquet")}
        assert {0, steps} <= evaluated, "before the first step, and after the last"
        before, *_, after = run.figures("eval/kl")  # estimates: after a few steps one may be below 0
        assert before == pytest.approx(0.0, abs=1e-4)
        assert abs(after) > 1e-3
    page = (comparison / "report.html").read_text()
    assert "GRPO" in page
    assert "offline DPO" in page
    assert json.loads((comparison / "comparison.json").read_text())
    capsys.readouterr()
    assert main(["compare", "two.yaml"]) == 0
    assert capsys.readouterr().out.count("complete, reused") == 2
