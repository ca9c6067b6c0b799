"""Whole runs with adapters: no reference is loaded, the model is merged at the end, a resumed run is the same run."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from attempts import RECIPES, Run
from peft import PeftModel
from processes import Command
from safetensors.torch import load_file
from test_resume import assert_equal, assert_stopped, resume
from test_runs import assert_loads, assert_synchronous
from transformers import AutoModelForCausalLM

pytestmark = pytest.mark.stack

Finished = Callable[..., Run]
LORA = "model.lora={r: 4, lora_alpha: 8}"


def test_grpo_with_a_reference_that_is_its_own_base(finished: Finished, qwen2: Path) -> None:
    run = finished("grpo", qwen2, "name=grpo-lora", LORA, "algorithm.beta=0.1")
    assert_adapted(run, base=qwen2 / "runs" / "base" / "model")
    assert run.figures("kl")[0] == pytest.approx(0, abs=1e-4), "the policy starts as its reference"
    assert run.figures("kl")[-1] > 0


def test_online_dpo_on_the_base_as_reference(finished: Finished, qwen2: Path) -> None:
    run = finished("rounds", qwen2, "name=rounds-lora", LORA, "reference={refresh: never}")
    assert_adapted(run, base=qwen2 / "runs" / "base" / "model")


def test_dpo_whose_reference_is_the_merged_policy_of_every_round(finished: Finished, qwen2: Path) -> None:
    run = finished("rounds", qwen2, "name=rounds-lora-refresh", LORA)
    assert_synchronous(run)
    assert_loads(run.path / "reference" / "version-1")


def test_ppo_with_an_adapted_critic_goes_on_after_a_stop_as_if_there_had_been_none(
    finished: Finished, qwen2: Path
) -> None:
    whole = finished("ppo", qwen2, "name=ppo-lora", LORA)
    assert_adapted(whole, base=qwen2 / "runs" / "base" / "model")
    stopped = Run(qwen2 / "runs" / "ppo-lora-stopped")
    with Command("run", str(RECIPES / "ppo.yaml"), "name=ppo-lora-stopped", LORA, cwd=qwen2) as command:
        command.read_until("step 1/6")
        command.press_ctrl_c()
        assert command.exit_code() == 130
        assert command.leaves_nothing_behind()
    assert_stopped(stopped, command.output, cause="user", exit_code=130)
    resume(stopped, command.output)
    assert_equal(stopped, whole)


def test_offline_dpo_starts_at_log_two(finished: Finished, qwen2: Path) -> None:
    run = finished("offline", qwen2, "name=offline-lora", LORA)
    assert run.metrics[0]["loss"] == pytest.approx(0.693147, abs=1e-5)
    assert run.metrics[-1]["rewards/margins"] > 0


def assert_adapted(run: Run, base: Path) -> None:
    """Synchronous, without a reference gang; its model is the base with its adapter, and the directory is tidy."""
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
    changed = 0
    before = load_file(base / "model.safetensors")
    for name, weight in load_file(run.path / "model" / "model.safetensors").items():
        torch.testing.assert_close(weight, merged[name], atol=1e-6, rtol=0, msg=name)
        changed += not torch.equal(weight, before[name])
    assert changed > 0
