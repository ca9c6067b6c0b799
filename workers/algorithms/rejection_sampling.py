"""Rejection sampling: fine-tuning on the policy's best samples (RAFT, arXiv 2304.06767; RFT, arXiv 2308.01825).

    kept = the `keep_best` completions of each group with the highest rewards, of at least `min_reward`, without repeats
    L    = mean over the update's kept tokens of −log π(y_t | x, y_<t)

Optimum. The policy imitates the distribution of the kept completions: with `keep_best: 1` and no threshold best-of-N,
whose KL to the sampling policy is at most log N − (N − 1)/N (arXiv 2401.01879). For rewards 0 and 1 with
`min_reward: 1` and all correct completions kept (`keep_best` = N, not `distinct`), one update on fresh samples of equal
lengths has the direction

    Σ r ∇log π / Σ r ≈ ∇log E_π[r],

the policy gradient of the logarithm of the success rate. The probability of rejected completions is not lowered, and no
reference restrains the policy. `distinct` (arXiv 2308.01825) prevents easy answers from being repeated.
"""

from __future__ import annotations

from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from workers.algorithms import sft
from workers.algorithms.base import Algorithm
from workers.algorithms.metrics import rollout_metrics
from workers.config import RejectionSamplingConfig
from workers.ragged import Ragged
from workers.stats import Metrics
from workers.types import Floats, ScoredBatch, TrainBatch


def prepare(scored: ScoredBatch, config: RejectionSamplingConfig) -> tuple[TrainBatch, Metrics]:
    """Make one row of each kept completion. The batch is empty if no completion reaches `min_reward`."""
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
    """Return the indices of the kept completions, by group and from best to worst. `seed` breaks ties at random.

    Example: one group has rewards [1, 3, 3], and its last two completions are equal. With `keep_best=2` the result is
    [2, 0] or [1, 0] if `distinct`, else [1, 2] or [2, 1].
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


ALGORITHM = Algorithm(prepare=prepare, loss=sft.loss)
