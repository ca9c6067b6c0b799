"""REINFORCE leave-one-out (arXiv 2402.14740): the baseline is the mean reward of the group's other completions.

    R_i = r_i − β Σ_t (log π_old − log π_ref)
    A_i = R_i − mean of R_j over the other completions of the group
    L   = mean over completions of −min(ρ_i A_i, clip(ρ_i, 1 − ε, 1 + ε_high) A_i),  ρ_i = π(y_i)/π_old(y_i)

Optimum. A completion is one action and ρ its probability ratio as a whole, so at π = π_old the gradient is that of
−mean of A_i log π(y_i). The baseline does not contain the completion itself and adds no bias: in expectation this is
the gradient of E_π[r] − β KL(π‖π_ref), whose optimum is π* ∝ π_ref exp(r/β) for any group size. At π* all completions
of a group have the same R_i, so the gradient noise vanishes. `normalize_advantages` divides by the standard deviation
over the step; the mean that it subtracts is already 0 where all groups have the same size. ρ_i is a product over the
tokens, so it leaves the clip range sooner for long completions: with more than one update per step, short completions
soon dominate the gradient.
"""

from __future__ import annotations

import numpy as np
from torch import Tensor

from workers.algorithms.advantages import STD_EPSILON, group_rows, leave_one_out, penalised, spread
from workers.algorithms.base import Algorithm, MicroBatch, Stats
from workers.algorithms.importance_sampling import importance_weights
from workers.algorithms.metrics import penalty_metrics, rollout_metrics, sequence_kl
from workers.algorithms.ops import completion_means, kl_k2, per_token, share
from workers.algorithms.policy_loss import clipped, clipped_surrogate, corrected, log_ratio
from workers.config import RlooConfig
from workers.stats import Metrics
from workers.types import ScoredBatch, TrainBatch


def prepare(scored: ScoredBatch, config: RlooConfig) -> tuple[TrainBatch, Metrics]:
    """Make one row of each group, with a completion's advantage on all its tokens."""
    experience = scored.experience
    assert scored.rewards is not None
    kl = sequence_kl(scored)
    rewards = penalised(scored.rewards, kl, config.beta)
    advantages = leave_one_out(rewards, experience.group_offsets)
    if config.normalize_advantages:
        deviation = advantages.std(ddof=1, dtype=np.float64)
        advantages = ((advantages - advantages.mean(dtype=np.float64)) / (deviation + STD_EPSILON)).astype(np.float32)
    weights, gap = importance_weights(scored, config)
    batch = group_rows(scored, spread(advantages, experience.completions), weights)
    return batch, rollout_metrics(scored) | penalty_metrics(scored.rewards, kl, config.beta) | gap


def loss(logprobs: Tensor, batch: MicroBatch, config: RlooConfig) -> tuple[Tensor, Stats]:
    """Compute the clipped surrogate of whole completions, averaged over the update's completions. `logprobs`: [T]."""
    advantages = per_token(batch, batch.advantages)
    low, high = config.epsilon, config.epsilon_high or config.epsilon
    losses, ratio = clipped_surrogate(log_ratio(logprobs, batch, "completion"), advantages, low, high)
    is_low, is_high = clipped(ratio, advantages, low, high)
    count, tokens = batch.totals.completions, batch.totals.tokens
    # All tokens of a completion have the completion's value, so their mean is that value.
    value = completion_means(corrected(losses, batch), batch).sum() / count
    return value, {
        "loss": value.detach(),
        "clip_ratio/low_mean": share(completion_means(is_low.to(ratio.dtype), batch), count),
        "clip_ratio/high_mean": share(completion_means(is_high.to(ratio.dtype), batch), count),
        "clip_ratio/region_mean": share(completion_means((is_low | is_high).to(ratio.dtype), batch), count),
        "policy/approxkl_avg": share(kl_k2(logprobs, per_token(batch, batch.old_logprobs)), tokens),
    }


ALGORITHM = Algorithm(prepare=prepare, loss=loss)
