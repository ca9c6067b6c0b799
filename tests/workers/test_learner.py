"""Steps of one learner rank on an engine of plain torch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from fakes import experience
from methods import ALGORITHMS, COMMON, GROUPS, NUM_TOKENS, figures, scored
from torch_engine import TorchEngine, learner_of

from workers.learner import Learner
from workers.packing import pack
from workers.stats import StepStats
from workers.types import Experience, Scores, TokenShard

SFT = {"type": "sft", **COMMON}
GRPO = {"type": "grpo", **COMMON}
DPO = {"type": "dpo", **COMMON}


@pytest.fixture(params=ALGORITHMS, ids=lambda a: "-".join([a["type"], *([a["head"]] if "head" in a else [])]))
def algorithm(request: pytest.FixtureRequest) -> dict[str, Any]:
    return dict(request.param)


def step(
    model: Path, algorithm: dict[str, Any], *, at: int = 0, **settings: Any
) -> tuple[StepStats, TorchEngine, Learner]:
    recipe = {key: value for key, value in algorithm.items() if key != "head"}
    learner, engine = learner_of(model, recipe, head=algorithm.get("head", "logprobs"), **settings)
    return learner.step(at, *scored(algorithm)), engine, learner


def weights(engine: TorchEngine) -> torch.Tensor:
    return torch.cat([p.detach().flatten() for p in engine.module.parameters()])


# ------------------------------------------------------------------------------------------------ one batch


def test_many_micro_batches_are_one(qwen2: Path, algorithm: dict[str, Any]) -> None:
    whole, one, _ = step(qwen2, algorithm)
    parts, many, _ = step(qwen2, algorithm, budget=1)
    assert one.lasts == [True]
    assert many.lasts == [False] * (len(many.lasts) - 1) + [True]
    assert len(many.lasts) >= 4
    assert one.gradients[0].abs().max() > 1e-3
    torch.testing.assert_close(many.gradients[0], one.gradients[0], atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(weights(many), weights(one), atol=1e-5, rtol=0)
    assert figures(parts) == pytest.approx(figures(whole), rel=1e-5, abs=1e-5)


def test_ranks_add_up_to_one(qwen2: Path, algorithm: dict[str, Any]) -> None:
    alone, engine, _ = step(qwen2, algorithm)
    ranks = [step(qwen2, algorithm, rank=rank, world_size=3, budget=30) for rank in range(3)]
    gradients = [engine.gradients[0] for _, engine, _ in ranks]
    torch.testing.assert_close(sum(gradients), engine.gradients[0], atol=1e-5, rtol=1e-4)
    assert len({len(engine.forwards) for _, engine, _ in ranks}) == 1
    added, whole = figures(*(stats for stats, _, _ in ranks)), figures(alone)
    assert added.pop("grad_norm") != whole.pop("grad_norm")  # each of these engines has only its own share
    assert added == pytest.approx(whole, rel=1e-5, abs=1e-5)


def test_a_rank_without_rows_computes_along_and_adds_nothing(qwen2: Path, algorithm: dict[str, Any]) -> None:
    stats, engine, _ = step(qwen2, algorithm, rank=29, world_size=30)
    assert len(engine.forwards) == len(engine.lasts) == 1
    assert engine.gradients[0].abs().max() == 0
    assert set(stats.sums.values()) == {0.0}


def test_the_denominators_are_those_of_the_update(qwen2: Path) -> None:
    # The mean of −log p over all tokens of the four first completions, which are in four micro-batches.
    stats, engine, _ = step(qwen2, SFT, budget=1)
    firsts = [(prompt, completions[:1]) for prompt, completions in GROUPS]
    logprobs = logprobs_of(learner_of(qwen2, SFT)[1], experience(firsts))
    assert len(logprobs) == 3 + 7 + 2 + 1
    assert stats.sums["loss"] == pytest.approx(-logprobs.mean(), rel=1e-5)
    assert stats.facts["num_updates"] == 1
    assert stats.facts["learning_rate"] == 1e-3
    assert stats.facts["grad_norm"] == pytest.approx(float(engine.gradients[0].norm()))


def logprobs_of(engine: TorchEngine, sampled: Experience) -> np.ndarray:
    rows = np.arange(len(sampled.prompts))
    return engine.infer(pack(sampled.prompt_tokens, sampled.completions, sampled.group_offsets, rows)).numpy()


def test_learning_lowers_the_loss(qwen2: Path) -> None:
    learner, _ = learner_of(qwen2, {**SFT, "learning_rate": 1e-2})
    losses = [learner.step(i, *scored(SFT)).sums["loss"] for i in range(8)]
    assert losses[-1] < 0.5 * losses[0]


# ------------------------------------------------------------------------------------------------ several updates


def test_passes_and_mini_batches(qwen2: Path) -> None:
    ppo = {"type": "ppo", **COMMON, "num_ppo_epochs": 3, "num_mini_batches": 2}
    stats, engine, _ = step(qwen2, ppo)
    assert stats.facts["num_updates"] == len(engine.learning_rates) == 6
    assert [len(p.completion_lengths) for p in engine.forwards] == [5] * 6
    _, repeated, _ = step(qwen2, ppo)
    assert torch.equal(weights(repeated), weights(engine))
    _, later, _ = step(qwen2, ppo, at=1)  # rows are shuffled by (seed, step)
    assert [p.targets.tolist() for p in later.forwards] != [p.targets.tolist() for p in engine.forwards]


def test_figures_of_several_updates_are_their_mean(qwen2: Path) -> None:
    standing_still = {**GRPO, "learning_rate": 1e-12}
    once, _, _ = step(qwen2, standing_still)
    three_passes, _, _ = step(qwen2, {**standing_still, "num_iterations": 3})
    assert three_passes.facts["num_updates"] == 3
    assert figures(three_passes) == pytest.approx({**figures(once), "num_updates": 3}, rel=1e-5)


def test_a_step_without_rows_changes_nothing(qwen2: Path) -> None:
    learner, engine = learner_of(qwen2, DPO)
    sampled, _, reference, _ = scored(DPO)
    before = weights(engine)
    stats = learner.step(0, sampled, [Scores(rewards=np.ones(10, np.float32), by_scorer={})], reference, None)
    assert torch.equal(weights(engine), before)
    assert stats.facts["num_updates"] == stats.facts["pairs/count"] == 0
    assert set(stats.sums) == {"sampling/logp_difference"}
    assert "learning_rate" not in stats.facts


# ------------------------------------------------------------------------------------------------ rates and resuming


def test_rates_follow_the_schedule_over_all_steps(qwen2: Path) -> None:
    linear = {**SFT, "lr_scheduler_type": "linear"}
    learner, engine = learner_of(qwen2, linear, max_steps=4)
    for i in range(4):
        learner.step(i, *scored(linear))
    assert engine.learning_rates == pytest.approx([1e-3, 0.75e-3, 0.5e-3, 0.25e-3])
    _, resumed, _ = step(qwen2, linear, at=2)
    assert resumed.learning_rates == engine.learning_rates[2:3]


def test_the_critic_has_a_rate_of_its_own(qwen2: Path) -> None:
    ppo = {**ALGORITHMS[3], "critic_learning_rate": 5e-4}
    assert step(qwen2, ppo)[1].learning_rates == [5e-4]


def test_a_resumed_learner_continues_identically(qwen2: Path, algorithm: dict[str, Any], tmp_path: Path) -> None:
    _, straight, learner = step(qwen2, algorithm, at=0)
    learner.save(str(tmp_path / "checkpoint"), {"step": 1})
    after = learner.step(1, *scored(algorithm))
    _, resumed, other = step(qwen2, algorithm, at=3)
    assert other.load(str(tmp_path / "checkpoint")) == {"step": 1}
    repeated = other.step(1, *scored(algorithm))
    assert torch.equal(weights(resumed), weights(straight))
    assert figures(repeated) == figures(after)


@pytest.mark.parametrize("reset", [True, False])
def test_fresh_moments_and_a_fresh_schedule_every_round(qwen2: Path, reset: bool) -> None:
    rounds = {**DPO, "pairs": {}, "batch_size": 2, "lr_scheduler_type": "linear", "reset_optimizer": reset}
    _, engine, learner = step(qwen2, rounds, max_steps=2)
    fresh_learner, fresh = learner_of(qwen2, rounds, max_steps=2)
    fresh.module.load_state_dict(engine.module.state_dict())
    for each in (learner, fresh_learner):
        each.step(1, *scored(rounds))
    assert torch.equal(weights(fresh), weights(engine)) == reset
    rates = [1e-3, 0.5e-3, 1e-3, 0.5e-3] if reset else [1e-3, 0.75e-3, 0.5e-3, 0.25e-3]
    assert engine.learning_rates == pytest.approx(rates)


def test_a_step_that_keeps_no_row_is_reported(qwen2: Path) -> None:
    recipe = {"type": "rejection_sampling", "min_reward": 3.0, **COMMON}
    before = weights(learner_of(qwen2, recipe)[1])
    stats, engine, _ = step(qwen2, recipe)
    assert (stats.facts["num_updates"], stats.facts["rejection/kept"]) == (0, 0)
    assert torch.equal(weights(engine), before)


# --------------------------------------------------------------------------------------- policy metrics and corrections


def test_a_controlled_coefficient_moves_and_comes_back(qwen2: Path, tmp_path: Path) -> None:
    # The KL is more than 20 % above its target: every step of 10 completions multiplies by 1 + 0.2 · 10/64.
    adaptive = {"type": "ppo", **COMMON, "kl_coef": 0.1, "adaptive_kl": {"target": 1e-6, "horizon": 64}}
    sampled, scores, _, values = scored(adaptive)
    reference = [TokenShard(completions=np.arange(10), values=np.full(NUM_TOKENS, -9, np.float32))]
    learner, _ = learner_of(qwen2, adaptive)
    factor = 1 + 0.2 * 10 / 64
    for power in range(2):
        found = learner.step(power, sampled, scores, reference, values).facts["kl_coef"]
        assert found == pytest.approx(0.1 * factor**power, rel=1e-12)
    learner.save(str(tmp_path / "checkpoint"), {"step": 2})
    fresh, _ = learner_of(qwen2, adaptive)
    assert fresh.load(str(tmp_path / "checkpoint")) == {"step": 2}
    assert fresh.step(2, sampled, scores, reference, values).facts["kl_coef"] == pytest.approx(0.1 * factor**2)


def test_the_learners_own_logprobs_correct_the_engines(qwen2: Path) -> None:
    truncated = {"vllm_importance_sampling_mode": "token_truncate", "vllm_importance_sampling_clip_max": 2.0}
    corrected = {**GRPO, "vllm_importance_sampling_correction": True, **truncated}
    learner, engine = learner_of(qwen2, corrected)
    sampled, scores, _, _ = scored(GRPO, temperature=0.7)
    rows = np.arange(len(GROUPS))
    packed = pack(sampled[0].prompt_tokens, sampled[0].completions, sampled[0].group_offsets, rows)
    own = learner.infer(sampled, as_sampled=True)
    np.testing.assert_array_equal(np.sort(own.values), np.sort(engine.infer(packed, 0.7).numpy()))
    assert not np.array_equal(np.sort(learner.infer(sampled).values), np.sort(own.values))
    stats = learner.step(0, sampled, scores, None, None, None, [own])
    assert sampled[0].logprobs is not None
    order = sampled[0].completions.positions(own.completions)
    ratios = np.minimum(np.exp(own.values - sampled[0].logprobs[order]), 2)
    name = "sampling/importance_sampling_ratio/"
    assert stats.facts[f"{name}mean"] == pytest.approx(float(ratios.mean()), rel=1e-5)
    assert stats.facts[f"{name}min"] == pytest.approx(float(ratios.min()), rel=1e-5)
    assert stats.sums["clip_ratio/region_mean"] == 0  # the old log-probabilities are the learner's own
