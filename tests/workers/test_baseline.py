"""The baseline of a batch is measured with the current weights, over the whole update and all ranks."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from fakes import experience
from torch_engine import TorchEngine, learner_of

from workers.learner import Learner
from workers.packing import pack
from workers.stats import StepStats, merge_stats
from workers.types import Experience, TokenShard

# Each row's own completion and that of the next row.
GROUPS = [
    ([3, 4, 5], [[6, 7, 1], [3, 4, 5, 6, 7, 8, 1]]),
    ([11], [[3, 4, 5, 6, 7, 8, 1], [5, 1]]),
    ([4, 5, 6, 7, 8], [[5, 1], [3, 3, 1]]),
    ([9, 10], [[3, 3, 1], [6, 7, 1]]),
]
LABELS = [1.0, 0.0, 0.0, 1.0]
REFERENCE = -3.0  # log-probability of every token, a little below an untrained model's
KTO: dict[str, Any] = {"type": "kto", "learning_rate": 1e-3, "adam_epsilon": 1e-5, "undesirable_weight": 1.5}


def scored(reference: float = REFERENCE) -> tuple[Any, ...]:
    rewards = [reward for label in LABELS for reward in (label, 0.0)]
    rows = experience(GROUPS, rewards=rewards)
    values = np.full(len(rows.completions.values), reference, np.float32)
    return [rows], None, [TokenShard(completions=np.arange(8), values=values)], None


def step(model: Path, *, others: float = 0.0, **settings: Any) -> tuple[StepStats, TorchEngine, Learner]:
    learner, engine = learner_of(model, KTO, **settings)
    engine.sum_of_others = others
    return learner.step(0, *scored()), engine, learner


def mean_of_the_mismatched(engine: TorchEngine) -> float:
    """Compute the baseline in another way, from rows of only the mismatched completions."""
    rows: Experience = experience([(prompt, completions[1:]) for prompt, completions in GROUPS])
    packed = pack(rows.prompt_tokens, rows.completions, rows.group_offsets, np.arange(4))
    return float((engine.infer(packed).numpy().astype(np.float64) - REFERENCE).sum()) / 4


def test_the_baseline_is_the_mean_over_the_mismatched_completions(qwen2: Path) -> None:
    expected = mean_of_the_mismatched(learner_of(qwen2, KTO)[1])
    stats, engine, _ = step(qwen2)
    assert expected > 0.1
    assert stats.sums["kl"] == pytest.approx(expected, rel=1e-5)
    assert engine.summed == [pytest.approx(4 * expected, rel=1e-5)]
    assert sum(len(p.completion_lengths) for p in engine.forwards) == 4  # no gradient through the mismatched ones


def test_the_baseline_is_measured_again_before_each_update(qwen2: Path) -> None:
    _, engine, learner = step(qwen2)
    expected = mean_of_the_mismatched(engine)  # with the weights after the first update
    learner.step(1, *scored())
    assert engine.summed[1] == pytest.approx(4 * expected, rel=1e-5)
    assert engine.summed[1] != pytest.approx(engine.summed[0], rel=1e-3)


def test_a_large_baseline_removes_the_gradient_of_desirable_completions(qwen2: Path) -> None:
    near, far = (step(qwen2, others=others)[1].gradients[0].norm() for others in (0.0, 4000.0))
    assert far < 1e-3 * near  # every completion is far below z = 1000


def test_many_micro_batches_are_one(qwen2: Path) -> None:
    whole, one, _ = step(qwen2)
    parts, many, _ = step(qwen2, budget=1)
    assert len(many.inferred) >= 4 > len(one.inferred)
    assert many.summed == pytest.approx(one.summed, rel=1e-5)
    torch.testing.assert_close(many.gradients[0], one.gradients[0], atol=1e-6, rtol=1e-4)
    assert parts.sums == pytest.approx(whole.sums, rel=1e-4, abs=1e-6)


def test_ranks_add_up_to_one(qwen2: Path) -> None:
    alone, engine, _ = step(qwen2)
    shares = [step(qwen2, rank=rank, world_size=3)[1].summed[0] for rank in range(3)]
    assert sum(shares) == pytest.approx(engine.summed[0], rel=1e-5)
    ranks = [step(qwen2, rank=r, world_size=3, others=sum(shares) - shares[r]) for r in range(3)]
    torch.testing.assert_close(
        sum(engine.gradients[0] for _, engine, _ in ranks), engine.gradients[0], atol=1e-6, rtol=1e-4
    )
    added, whole = (merge_stats(parts) for parts in ([stats for stats, _, _ in ranks], [alone]))
    names = [name for name in whole if not name.startswith("timing/") and name != "grad_norm"]
    assert {n: added[n] for n in names} == pytest.approx({n: whole[n] for n in names}, rel=1e-4, abs=1e-6)


def test_a_rank_without_rows_computes_along_and_adds_nothing(qwen2: Path) -> None:
    stats, engine, _ = step(qwen2, rank=29, world_size=30)
    assert (len(engine.inferred), engine.summed) == (1, [0.0])
    assert engine.gradients[0].abs().max() == 0
    assert set(stats.sums.values()) == {0.0}


def test_a_batch_without_a_baseline_measures_nothing(qwen2: Path) -> None:
    learner, engine = learner_of(qwen2, {"type": "sft"})
    learner.step(0, *scored())
    assert (engine.summed, engine.inferred) == ([], [])
