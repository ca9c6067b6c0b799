"""Complete LoRA runs: no reference is loaded, the model is merged at the end, and a resumed run has equal results."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from attempts import RECIPES, Run
from peft import AutoPeftModelForSequenceClassification, PeftModel
from processes import Command
from safetensors.torch import load_file
from test_resume import assert_equal, assert_stopped, resume
from test_runs import assert_loads, assert_synchronous
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

pytestmark = pytest.mark.stack

Finished = Callable[..., Run]
LORA = "model.lora={r: 4, lora_alpha: 8}"


@pytest.mark.long
def test_ppo_with_an_adapted_critic_resumes_with_unchanged_results(finished: Finished, qwen2: Path) -> None:
    """Check a resumed run whose reference is its own base model and that publishes adapters."""
    fewer = (LORA, "algorithm.max_steps=4")
    whole = finished("ppo", qwen2, "name=ppo-lora", *fewer)
    assert_adapted(whole, base=qwen2 / "runs" / "base" / "model")
    first, *later = whole.figures("objective/kl")
    assert first == pytest.approx(0, abs=1e-4), "the policy starts as its reference"
    assert max(map(abs, later)) > 1e-3, "the mean log-ratio of few samples may be negative, but moves away from zero"
    stopped = Run(qwen2 / "runs" / "ppo-lora-stopped")
    with Command("run", str(RECIPES / "ppo.yaml"), "name=ppo-lora-stopped", *fewer, cwd=qwen2) as command:
        command.read_until("step 1/4")
        command.press_ctrl_c()
        assert command.exit_code() == 130
        assert command.leaves_nothing_behind()
    assert_stopped(stopped, command.output, cause="user", exit_code=130, steps=4)
    resume(stopped, command.output)
    assert_equal(stopped, whole)


@pytest.mark.long
def test_dpo_whose_reference_is_the_merged_policy_of_every_round(finished: Finished, qwen2: Path) -> None:
    run = finished("rounds", qwen2, "name=rounds-lora-refresh", LORA)
    assert_synchronous(run)
    assert_loads(run.path / "reference" / "version-1")


def test_offline_dpo_starts_at_log_two(finished: Finished, qwen2: Path) -> None:
    """Check the losses of a run whose base model computes the reference log-probabilities once per row."""
    run = finished("offline", qwen2, "name=offline-lora", LORA)
    assert run.metrics[0]["loss"] == pytest.approx(0.693147, abs=1e-5)
    assert run.metrics[-1]["rewards/margins"] > 0


def test_a_reward_model(finished: Finished, qwen2: Path) -> None:
    algorithm = "algorithm={type: reward_model, max_steps: 4, batch_size: 64, learning_rate: 3.0e-3}"
    changes = (
        LORA,
        algorithm,
        "data.eval_dataset=pairs.jsonl",
        "policy={num_ranks: 2, param_persistence_threshold: 0}",
    )
    run = finished("offline", qwen2, "name=judge-lora", *changes)
    base, *trained = run.metrics
    assert base["eval/accuracy"] < trained[-1]["eval/accuracy"]
    merged, loading = AutoModelForSequenceClassification.from_pretrained(
        run.path / "model", dtype=torch.float32, output_loading_info=True
    )
    assert not any(loading.values()), loading
    adapter = AutoPeftModelForSequenceClassification.from_pretrained(
        run.path / "model" / "adapter", num_labels=1, dtype=torch.float32
    ).merge_and_unload()
    assert_equal_weights(dict(merged.named_parameters()), dict(adapter.named_parameters()))


def assert_adapted(run: Run, base: Path) -> None:
    """Check that a run was synchronous, had no reference gang, left no adapters behind and merged its adapter."""
    assert_synchronous(run)
    logs = {path.stem.rpartition("-")[0] for path in (run.path / "logs" / "latest").glob("*.log")}
    assert {"policy", "rollout"} <= logs
    assert "reference" not in logs
    assert not (run.path / "adapters").exists()
    assert_loads(run.path / "model")
    adapter: Any = PeftModel.from_pretrained(
        AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32), run.path / "model" / "adapter"
    )
    merged = dict(adapter.merge_and_unload().named_parameters(remove_duplicate=False))
    before = load_file(base / "model.safetensors")
    exported = load_file(run.path / "model" / "model.safetensors")
    assert_equal_weights(exported, {name: merged[name] for name in exported})
    assert any(not torch.equal(weight, before[name]) for name, weight in exported.items())


def assert_equal_weights(ours: Mapping[str, torch.Tensor], theirs: Mapping[str, torch.Tensor]) -> None:
    assert ours.keys() == theirs.keys()
    for name, weight in ours.items():
        torch.testing.assert_close(weight, theirs[name], atol=1e-6, rtol=0, msg=name)
