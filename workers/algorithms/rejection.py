"""Rejection sampling: fine-tuning on the best of one's own samples (RAFT, arXiv 2304.06767; RFT, arXiv 2308.01825).

    kept = of each group the `keep_best` with the highest reward that reach `min_reward`, equal completions once
    L    = mean over the update's kept tokens of −log π(y_t | x, y_<t)

What is optimised. The policy imitates the distribution of what was kept: the best of N for `keep_best: 1` without a
threshold, whose KL to the sampling policy is at most log N − (N − 1)/N (arXiv 2401.01879). For rewards 0 and 1 with
`min_reward: 1` and all correct completions kept (`keep_best` = N, not `distinct`), one update on fresh samples of equal
lengths goes along

    Σ r ∇log π / Σ r ≈ ∇log E_π[r],

the policy gradient of the logarithm of the success rate. What was rejected is not pushed away, and nothing holds the
policy near a reference: `distinct` (arXiv 2308.01825) is what keeps easy answers from being repeated.
"""

from __future__ import annotations

from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from workers.algorithms import sft
from workers.algorithms.base import Algorithm
from workers.algorithms.metrics import rollout_metrics
from workers.config import RejectionSamplingConfig
from workers.needs import NEEDS
from workers.types import Floats, Metrics, Ragged, ScoredBatch, TrainBatch


def prepare(scored: ScoredBatch, config: RejectionSamplingConfig) -> tuple[TrainBatch, Metrics]:
    """One kept completion per row; no row at all when nothing was good enough."""
    experience, rewards = scored.experience, scored.rewards
    assert rewards is not None
    kept = best(
        rewards,
        experience.completions,
        experience.group_offsets,
        keep_best=config.keep_best,
        min_reward=config.min_reward,
        distinct=config.distinct,
        seed=scored.seed,
    )
    groups = experience.group_of[kept]
    batch = TrainBatch(
        prompts=experience.prompt_tokens.take(groups),
        completions=experience.completions.take(kept),
        row_offsets=np.arange(len(kept) + 1),
        sources=kept,
    )
    metrics = rollout_metrics(scored) | {
        "rejection/count": float(len(kept)),
        "rejection/kept": len(kept) / len(rewards),
        "rejection/empty_groups": 1 - len(np.unique(groups)) / len(experience.prompts),
    }
    if len(kept):
        metrics["rejection/reward"] = float(rewards[kept].mean(dtype=np.float64))
    return batch, metrics


def best(
    rewards: Floats,
    completions: Ragged,
    group_offsets: NDArray[np.int64],
    *,
    keep_best: int,
    min_reward: float | None,
    distinct: bool,
    seed: int,
) -> NDArray[np.int64]:
    """Which completions are kept, group after group, each from best to worst. `seed` decides between equal rewards.

    Rewards [1, 3, 3] of one group, the last two being the same tokens, with `keep_best=2`: [2, 0] or [1, 0] when
    `distinct`, else [1, 2] or [2, 1].
    """
    assert rewards.shape == (group_offsets[-1],), (rewards.shape, group_offsets[-1])
    lots = np.random.Generator(np.random.Philox(seed)).random(len(rewards))
    kept: list[int] = []
    for begin, end in pairwise(group_offsets):
        ranked = begin + np.lexsort((lots[begin:end], -rewards[begin:end]))
        taken: list[int] = []
        seen: set[bytes] = set()
        for i in ranked:
            if len(taken) == keep_best or (min_reward is not None and rewards[i] < min_reward):
                break
            text = completions[i].tobytes()
            if not (distinct and text in seen):
                taken.append(int(i))
            seen.add(text)
        kept += taken
    return np.asarray(kept, np.int64)


REJECTION_SAMPLING = Algorithm(needs=NEEDS["rejection_sampling"], prepare=prepare, loss=sft.loss)
