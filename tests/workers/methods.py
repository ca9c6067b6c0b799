"""Every method with some settings, and the input of a step that all of them can train on."""

from __future__ import annotations

from typing import Any

import numpy as np
from fakes import experience

from workers.stats import Metrics, StepStats, merge_stats
from workers.types import Scores, TokenShard

GROUPS = [
    ([3, 4, 5], [[6, 7, 1], [8, 1], [9, 9, 9, 9, 1]]),
    ([11], [[3, 4, 5, 6, 7, 8, 1], [4, 1]]),
    ([4, 5, 6, 7, 8], [[5, 1], [6, 6, 1]]),
    ([9, 10], [[1], [3, 3, 1], [5, 6, 7, 1]]),
]
REWARDS = [1.0, 0.0, 0.25, 2.0, 1.0, 0.5, 0.75, 1.0, 0.0, 0.5]
NUM_TOKENS = 32
# Adam divides by the size of the gradient. Where the gradient is only rounding (a key's bias), epsilon limits the step.
COMMON = {"learning_rate": 1e-3, "adam_epsilon": 1e-5}
ALGORITHMS: list[dict[str, Any]] = [
    {"type": "sft", **COMMON},
    {"type": "grpo", "beta": 0.1, **COMMON},
    {"type": "ppo", **COMMON, "critic_learning_rate": 1e-3, "num_ppo_epochs": 1},
    {"type": "ppo", **COMMON, "critic_learning_rate": 1e-3, "num_ppo_epochs": 1, "head": "values"},
    {"type": "dpo", "sft_weight": 0.5, "pairs": {"per_prompt": 2}, **COMMON},
    {"type": "reward_model", "center_rewards_coefficient": 0.1, **COMMON, "head": "scores"},
    {"type": "rejection_sampling", "keep_best": 2, "num_generations": 3, "min_reward": 0.25, **COMMON},
    {"type": "rloo", **COMMON},
    {"type": "reinforce++", **COMMON},
    {"type": "ppo", **COMMON, "num_ppo_epochs": 1, "adaptive_kl": {"target": 0.1, "horizon": 64}},
    {"type": "ppo", **COMMON, "num_ppo_epochs": 1, "adaptive_kl": {"target": 0.1, "horizon": 64}, "head": "values"},
]
MORE: list[dict[str, Any]] = [  # compared on real ranks only
    {"type": "kto", **COMMON},
    {"type": "grpo", "loss_type": "dr_grpo", "fixed_length": 8, "scale_rewards": "none", **COMMON},
    {"type": "grpo", "loss_type": "grpo", "importance_sampling_level": "sequence", "epsilon": 0.05, **COMMON},
    {"type": "grpo", "loss_type": "cispo", "epsilon_high": 2.0, **COMMON},
    {"type": "grpo", "dynamic_sampling": True, "num_mini_batches": 2, "num_iterations": 2, **COMMON},
    {"type": "dpo", "loss_type": "ipo", "pairs": {"selection": "all", "per_prompt": 3}, **COMMON},
    {"type": "dpo", "loss_type": "simpo", "beta": 2.0, **COMMON},
    {"type": "dpo", "loss_type": "sppo", "soft_labels": "margin", **COMMON},
    {"type": "dpo", "loss_type": "hinge", "ld_alpha": 0.5, "batch_size": 2, **COMMON},
]


def scored(algorithm: dict[str, Any], **changes: Any) -> tuple[Any, ...]:
    """Return the arguments of a step. Log-probabilities are near those of an untrained model, so ratios are near 1."""
    rng = np.random.Generator(np.random.Philox(11))
    noise = [(rng.normal(0, 0.1, NUM_TOKENS) - 2.5).astype(np.float32) for _ in range(3)]
    whole = np.arange(len(REWARDS))
    sampled = experience(GROUPS, logprobs=list(noise[0]), **changes)
    labels = 0.9 if algorithm["type"] == "kto" else 0.0  # subtracted, so that one first completion is undesirable
    scores = [Scores(rewards=np.float32(REWARDS) - np.float32(labels), by_scorer={})]
    reference = [TokenShard(completions=whole, values=noise[1])]
    values = [TokenShard(completions=whole, values=noise[2] + 3)] if algorithm["type"] == "ppo" else None
    return [sampled], scores, reference, values


def figures(*stats: StepStats) -> Metrics:
    return {name: value for name, value in merge_stats(stats).items() if not name.startswith("timing/")}


def name_of(method: dict[str, Any]) -> str:
    return "-".join(f"{key}={value}" for key, value in method.items() if key not in COMMON)
