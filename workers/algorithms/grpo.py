"""Group-relative policy optimisation (arXiv 2402.03300): PPO's clipped objective with the group as critic.

    A_i = (r_i − mean of the group) / std,  the same for all tokens of completion i
    L   = Σ over completions i, tokens t of w_i (−min(ρ_t A_i, clip(ρ_t, 1 − ε, 1 + ε_high) A_i) + β k3_t)

with the weight w_i of a token from `loss_type`, for N completions of T_i tokens in the update:

    dapo      1 / Σ T_i            each token counts alike (arXiv 2503.14476)
    grpo      1 / (N T_i)          each completion counts alike, its tokens the less the longer it is
    dr_grpo   1 / (N fixed_length) no weight depends on a length (arXiv 2503.20783)

Kin by argument: Dr. GRPO is `dr_grpo` with `scale_rewards: none`; DAPO's clip-higher is `epsilon_high`; RLOO
(arXiv 2402.14740) is `dr_grpo`, `scale_rewards: none`, `kl_placement: reward`, up to the factor (G − 1)/G.

What is optimised depends on where the KL stands.

`kl_placement: reward` subtracts β Σ_t (log π_old − log π_ref) from r_i: k1 as a reward. As in PPO the optimum
is π* ∝ π_ref exp(r/β). There all completions of a group are worth the same, and the noise vanishes with the
advantages.

`kl_placement: loss` adds k3, whose gradient is (1 − π_ref/π) ∇log π and on average ∇KL(π_ref‖π): the other
direction. On completions of one token E_π[r] − β KL(π_ref‖π) is greatest where r + β π_ref/π = λ for all y,
that is at

    π(y|x) = β π_ref(y|x) / (λ − r(x, y)),  λ > max r such that it sums to 1,

whose tails are heavier than those of π*. Without scaling, the mean of a group of G shortens the gradient of
the reward by (G − 1)/G but not that of the KL, so this β is `beta`·G/(G − 1). On longer completions each
token is pulled towards π_ref given the prefix that was sampled; what the prefix does to the KL of later
tokens is left out.
"""

from __future__ import annotations

import numpy as np
from torch import Tensor

from workers.algorithms.advantages import group_advantages, spread
from workers.algorithms.base import Algorithm, MicroBatch, Stats
from workers.algorithms.metrics import rollout_metrics, sequence_kl
from workers.algorithms.ops import completion_means, kl_k3, per_token, share
from workers.algorithms.ppo import clipped, clipped_surrogate
from workers.config import GrpoConfig
from workers.needs import NEEDS
from workers.types import Evidence, Finish, Floats, Metrics, TrainBatch


def prepare(evidence: Evidence, config: GrpoConfig) -> tuple[TrainBatch, Metrics]:
    """One group per row. Masked, that is truncated, completions count in their group's mean only."""
    experience = evidence.experience
    assert experience.logprobs is not None
    rewards, metrics = _rewards(evidence, config)
    advantages = group_advantages(rewards, experience.group_offsets, scale=config.scale_rewards)
    complete = experience.finish == Finish.stop
    kept = np.flatnonzero(complete) if config.mask_truncated_completions else np.arange(len(complete))
    sizes = np.bincount(experience.group_of[kept], minlength=len(experience.prompts))
    rows = np.flatnonzero(sizes)
    completions, tokens = experience.completions.take(kept), experience.completions.positions(kept)
    reference = evidence.reference_logprobs
    batch = TrainBatch(
        prompts=experience.prompt_tokens.take(rows),
        completions=completions,
        row_offsets=np.concatenate([[0], np.cumsum(sizes[rows])]),
        old_logprobs=experience.logprobs[tokens],
        reference_logprobs=None if reference is None else reference[tokens],
        advantages=spread(advantages[kept], completions),
        sources=kept,
    )
    return batch, metrics


def loss(logprobs: Tensor, batch: MicroBatch, config: GrpoConfig) -> tuple[Tensor, Stats]:
    """The clipped surrogate plus β k3, weighted by `loss_type`. `logprobs`: [T]."""
    old, advantages = per_token(batch, batch.old_logprobs), per_token(batch, batch.advantages)
    low, high = config.epsilon, config.epsilon_high or config.epsilon
    losses, ratio = clipped_surrogate(per_token(batch, logprobs), old, advantages, low, high)
    is_low, is_high = clipped(ratio, advantages, low, high)
    tokens = batch.totals.tokens
    stats = {
        "clip_ratio/low_mean": share(is_low, tokens),
        "clip_ratio/high_mean": share(is_high, tokens),
        "clip_ratio/region_mean": share(is_low | is_high, tokens),
    }
    if batch.reference_logprobs is not None:
        kl = kl_k3(logprobs, per_token(batch, batch.reference_logprobs))
        stats["kl"] = share(kl, tokens)
        if config.kl_placement == "loss":
            losses = losses + config.beta * kl
    weighted = _weighted_sum(losses, batch, config)
    return weighted, stats | {"loss": weighted.detach()}


def _rewards(evidence: Evidence, config: GrpoConfig) -> tuple[Floats, Metrics]:
    """Rewards [N], less the KL where that is its place; and what is known of the samples."""
    rewards, metrics = evidence.rewards, rollout_metrics(evidence)
    assert rewards is not None
    if config.beta and config.kl_placement == "reward":
        kl = sequence_kl(evidence)
        assert kl is not None
        rewards = (rewards - config.beta * kl).astype(np.float32)
        metrics["objective/non_score_reward"] = -config.beta * float(kl.mean())
        metrics["objective/rlhf_reward"] = float(rewards.mean(dtype=np.float64))
    return rewards, metrics


def _weighted_sum(losses: Tensor, batch: MicroBatch, config: GrpoConfig) -> Tensor:
    match config.loss_type:
        case "dapo":
            return losses.sum() / batch.totals.tokens
        case "grpo":
            return completion_means(losses, batch).sum() / batch.totals.completions
        case "dr_grpo":
            assert config.fixed_length is not None
            return losses.sum() / (batch.totals.completions * config.fixed_length)


GRPO = Algorithm(needs=NEEDS["grpo"], prepare=prepare, loss=loss)
