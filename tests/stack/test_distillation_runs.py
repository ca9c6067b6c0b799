"""Distillation runs: a student trains without a reward, on its own samples, its teacher's samples, or a dataset."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from attempts import Run
from transformers import AutoModelForCausalLM

pytestmark = pytest.mark.stack

Finished = Callable[..., Run]
GRADIENT = ("name=distill-gradient", "algorithm.objective=policy_gradient", "algorithm.beta=1.0")
LESS_NOISE = ("algorithm.num_generations=4", "algorithm.learning_rate=3.0e-3", "algorithm.max_steps=12")
DATASET = ("name=distill-dataset", "data.prompts=null", "data.dataset=demonstrations.jsonl", "algorithm.batch_size=64")
SAMPLED = ("name=distill-sampled", "algorithm.sampler=teacher", "algorithm.beta=0.0", "max_staleness=1")
PARTITIONED = ("teacher.zero_stage=3", "data.max_length=48")


def test_on_its_own_samples(finished: Finished, qwen2: Path) -> None:
    run = finished("distill", qwen2)
    assert_trained(run)
    assert set(run.figures("staleness/max")) == {0}
    assert max(run.figures("sampling/logp_difference_max")) < 1e-4
    assert min(run.figures("completions/mean_length")) > 0
    assert not run.figures("reward")
    assert not (run.path / "samples").exists()  # only a reward worker writes samples
    roles = {path.name.partition("-")[0] for path in (run.path / "logs" / "attempt-1").glob("*.log")}
    assert roles == {"policy", "teacher", "rollout"}


@pytest.mark.long
def test_by_policy_gradient(finished: Finished, qwen2: Path) -> None:
    run = finished("distill", qwen2, *GRADIENT, *LESS_NOISE)
    assert_trained(run, steps=12)
    assert run.figures("objective/kl")[0] > 0
    assert set(run.figures("clip_ratio/region_mean")) == {0.0}  # one update per step


@pytest.mark.long
def test_on_a_dataset_with_a_partitioned_teacher(finished: Finished, qwen2: Path) -> None:
    run = finished("distill", qwen2, *DATASET, *PARTITIONED)
    assert_trained(run)
    assert not run.figures("staleness/max")


@pytest.mark.long
def test_on_samples_of_the_teacher(finished: Finished, qwen2: Path) -> None:
    run = finished("distill", qwen2, *SAMPLED)
    assert_trained(run)
    assert not run.figures("staleness/max")  # the teacher's samples do not become stale
    assert not run.figures("timing/publish")


def assert_trained(run: Run, steps: int = 6) -> None:
    assert run.exit["cause"] == "completed"
    divergence = run.figures("divergence")
    assert len(divergence) == steps
    assert np.mean(divergence[-2:]) < 0.8 * np.mean(divergence[:2])
    assert min(run.figures("entropy")) > 0
    _, loading = AutoModelForCausalLM.from_pretrained(run.path / "model", output_loading_info=True)
    assert not any(loading.values()), loading
