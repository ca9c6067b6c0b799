"""REINFORCE++ (arXiv 2501.03262): PPO's clipped objective with batch-normalised returns instead of a critic.

    r_t = −β (log π_old − log π_ref), plus the score s_i on the last token
    A_t = r_t + γ A_{t+1}, then normalised to mean 0 and standard deviation 1 over all tokens of the step
    L   = mean over the update's tokens of −min(ρ_t A_t, clip(ρ_t, 1 − ε, 1 + ε_high) A_t)

With `baseline: none` the score is used as it is, and one completion per prompt is enough. `baseline: group` first
subtracts the mean of the group's scores, as in the paper's variant for several completions per prompt.

Optimum. The mean subtracted by the normalisation is a baseline that does not depend on the token, and the standard
deviation is a common factor. At γ = 1 the gradient therefore has the direction of that of E_π[r] − β KL(π‖π_ref), and
the optimum is π* ∝ π_ref exp(r/β). The mean of a group of G contains the completion itself, which reduces the gradient
of the score by (G − 1)/G but not that of the KL: with `baseline: group` the β of this formula is `beta`·G/(G − 1). One
baseline for all prompts cannot distinguish an easy prompt from a good completion, so without the group baseline the
gradient noise does not vanish at the optimum.
"""

from __future__ import annotations

import numpy as np
from torch import Tensor

from workers.algorithms.advantages import gae, group_advantages, group_rows, token_rewards, whiten
from workers.algorithms.base import Algorithm, MicroBatch, Stats
from workers.algorithms.importance_sampling import importance_weights
from workers.algorithms.metrics import penalty_metrics, rollout_metrics, sequence_kl
from workers.algorithms.ops import kl_k2, per_token, share
from workers.algorithms.policy_loss import clipped, clipped_surrogate, corrected, log_ratio
from workers.config import ReinforceConfig
from workers.stats import Metrics
from workers.types import ScoredBatch, TrainBatch


def prepare(scored: ScoredBatch, config: ReinforceConfig) -> tuple[TrainBatch, Metrics]:
    """Make one row of each group, with an advantage for each token."""
    experience, scores = scored.experience, scored.rewards
    assert scores is not None
    if config.baseline == "group":
        scores = group_advantages(scores, experience.group_offsets, scale="none")
    penalty = None
    if config.beta:
        assert scored.reference_logprobs is not None
        penalty = config.beta * (scored.old_logprobs - scored.reference_logprobs)
    rewards = token_rewards(scores, experience.completions, penalty)
    # With zero values and λ = 1, generalised advantages are the discounted returns.
    returns = gae(rewards, np.zeros_like(rewards), experience.completions, gamma=config.gamma, lam=1.0)
    weights, gap = importance_weights(scored, config)
    batch = group_rows(scored, whiten(returns), weights)
    assert scored.rewards is not None
    about_kl = penalty_metrics(scored.rewards, sequence_kl(scored), config.beta)
    return batch, rollout_metrics(scored) | about_kl | gap


def loss(logprobs: Tensor, batch: MicroBatch, config: ReinforceConfig) -> tuple[Tensor, Stats]:
    """Compute the clipped surrogate, averaged over the update's tokens. `logprobs`: [T]."""
    advantages = per_token(batch, batch.advantages)
    low, high = config.epsilon, config.epsilon_high or config.epsilon
    losses, ratio = clipped_surrogate(log_ratio(logprobs, batch, "token"), advantages, low, high)
    is_low, is_high = clipped(ratio, advantages, low, high)
    tokens = batch.totals.tokens
    value = corrected(losses, batch).sum() / tokens
    return value, {
        "loss": value.detach(),
        "clip_ratio/low_mean": share(is_low, tokens),
        "clip_ratio/high_mean": share(is_high, tokens),
        "clip_ratio/region_mean": share(is_low | is_high, tokens),
        "policy/approxkl_avg": share(kl_k2(logprobs, per_token(batch, batch.old_logprobs)), tokens),
    }


ALGORITHM = Algorithm(prepare=prepare, loss=loss)
