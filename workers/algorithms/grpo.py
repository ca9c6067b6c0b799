"""Group-relative policy optimisation (arXiv 2402.03300): PPO's clipped objective with the group mean as baseline.

    A_i = (r_i − mean of the group) / std,  the same for all tokens of completion i
    L   = Σ over completions i, tokens t of w_i (−min(ρ_t A_i, clip(ρ_t, 1 − ε, 1 + ε_high) A_i) + β k3_t)

where `loss_type` gives the weight w_i of a token, for N completions of T_i tokens in the update:

    dapo      1 / Σ T_i            every token has the same weight (arXiv 2503.14476)
    grpo      1 / (N T_i)          every completion has the same weight, so tokens of long completions weigh less
    dr_grpo   1 / (N fixed_length) no weight depends on a length (arXiv 2503.20783)

TRL's `bnpo`, the mean over the tokens of a local batch, equals `dapo` here, where denominators are those of the whole
update.

Variants by setting:

- `loss_type: cispo` (arXiv 2506.13585) has the weights of dapo and the loss −min(ρ_t, ε_high) A_i log π, in which the
  factor before log π has no gradient: no token loses its gradient by clipping.
- `importance_sampling_level: sequence` replaces ρ_t by its geometric mean over the completion. With `loss_type: grpo`
  this is GSPO (arXiv 2507.18071).
- `delta` bounds ρ_t also where A_i < 0 (arXiv 2505.07291).
- `overlong_buffer` subtracts up to 1 from the reward of a long completion (DAPO, arXiv 2503.14476, eq. 13).
- `dynamic_sampling` (DAPO, arXiv 2503.14476, section 3.2) leaves groups of equal rewards out of the batch and the
  denominators. The step has sampled further prompts in their place (orchestrator/pipeline/sources.py).
- `epsilon_high` is DAPO's clip-higher.
- `dr_grpo` with `scale_rewards: none` is Dr. GRPO. With `kl_placement: reward` in addition it is RLOO (arXiv
  2402.14740), up to the factor (G − 1)/G.

Optimum. It depends on `kl_placement`.

`kl_placement: reward` subtracts β Σ_t (log π_old − log π_ref) from r_i: k1 as a reward. As in PPO the optimum is
π* ∝ π_ref exp(r/β). At π* all completions of a group have the same penalised reward, so all advantages and the gradient
noise vanish.

`kl_placement: loss` adds k3, whose gradient is (1 − π_ref/π) ∇log π, in expectation ∇KL(π_ref‖π): the forward KL. For
completions of one token, E_π[r] − β KL(π_ref‖π) has its maximum where r + β π_ref/π = λ for all y, which is

    π(y|x) = β π_ref(y|x) / (λ − r(x, y)),  λ > max r such that it sums to 1.

Its tails are heavier than those of π*. Without scaling, the mean of a group of G reduces the gradient of the reward by
(G − 1)/G but not that of the KL, so the β of this formula is `beta`·G/(G − 1). On longer completions each token is
pulled towards π_ref given the sampled prefix; the effect of a prefix on the KL of later tokens is ignored.
`use_bias_correction_kl` multiplies k3 by ρ (arXiv 2512.02556). Its gradient is then that of each token's KL(π‖π_ref),
and for completions of one token the optimum is π* with the same β.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from workers.algorithms.advantages import group_advantages, group_rows, has_signal, overlong_penalty, penalised, spread
from workers.algorithms.base import Algorithm, MicroBatch, Stats
from workers.algorithms.importance_sampling import importance_weights
from workers.algorithms.metrics import penalty_metrics, rollout_metrics, sequence_kl
from workers.algorithms.ops import completion_means, kl_k3, per_token, share
from workers.algorithms.policy_loss import clipped, clipped_surrogate, corrected, log_ratio, weighted_likelihood
from workers.config import GrpoConfig
from workers.stats import Metrics
from workers.types import Finish, Floats, ScoredBatch, TrainBatch


def prepare(scored: ScoredBatch, config: GrpoConfig) -> tuple[TrainBatch, Metrics]:
    """Make one row of each group. A masked (truncated) completion only enters the mean of its group."""
    experience = scored.experience
    rewards, metrics = _rewards(scored, config)
    advantages = group_advantages(rewards, experience.group_offsets, scale=config.scale_rewards)
    weights, gap = importance_weights(scored, config)
    kept = np.ones(len(experience.completions), bool)
    if config.mask_truncated_completions:
        kept &= experience.finish == Finish.stop
    if config.dynamic_sampling:
        assert scored.rewards is not None
        differ = has_signal(scored.rewards, experience.group_offsets)
        kept &= differ[experience.group_of]
        metrics["sampling/kept_groups"] = float(differ.mean())
    batch = group_rows(scored, spread(advantages, experience.completions), weights, np.flatnonzero(kept))
    return batch, metrics | gap


def loss(logprobs: Tensor, batch: MicroBatch, config: GrpoConfig) -> tuple[Tensor, Stats]:
    """Compute the clipped surrogate plus β k3, weighted by `loss_type`. `logprobs`: [T]."""
    losses, low, high = _surrogate(logprobs, batch, config)
    losses = corrected(losses, batch)
    tokens = batch.totals.tokens
    stats = {
        "clip_ratio/low_mean": share(low, tokens),
        "clip_ratio/high_mean": share(high, tokens),
        "clip_ratio/region_mean": share(low | high, tokens),
    }
    if batch.reference_logprobs is not None:
        kl = kl_k3(logprobs, per_token(batch, batch.reference_logprobs))
        stats["kl"] = share(kl, tokens)
        if config.kl_placement == "loss":
            if config.use_bias_correction_kl:
                kl = kl * torch.exp(log_ratio(logprobs, batch, config.importance_sampling_level))
            losses = losses + config.beta * kl
    weighted = _weighted_sum(losses, batch, config)
    return weighted, stats | {"loss": weighted.detach()}


def _surrogate(logprobs: Tensor, batch: MicroBatch, config: GrpoConfig) -> tuple[Tensor, Tensor, Tensor]:
    """Return each token's loss, and masks of the tokens clipped at the lower and at the upper bound: all [T]."""
    advantages = per_token(batch, batch.advantages)
    logs = log_ratio(logprobs, batch, config.importance_sampling_level)
    low, high = config.epsilon, config.epsilon_high or config.epsilon
    if config.loss_type == "cispo":
        losses, ratio = weighted_likelihood(logprobs, logs, advantages, largest=high)
        bounded = (ratio > high) & (advantages > 0)
        return losses, torch.zeros_like(bounded), bounded
    losses, ratio = clipped_surrogate(logs, advantages, low, high, config.delta)
    return losses, *clipped(ratio, advantages, low, high)


def _rewards(scored: ScoredBatch, config: GrpoConfig) -> tuple[Floats, Metrics]:
    """Return the rewards, [N], minus the overlong penalty and a KL in the reward, and the metrics of the samples."""
    rewards, metrics = scored.rewards, rollout_metrics(scored)
    assert rewards is not None
    if config.overlong_buffer is not None:
        assert config.overlong_length is not None
        lengths = scored.experience.completions.lengths
        penalty = overlong_penalty(lengths, length=config.overlong_length, buffer=config.overlong_buffer)
        rewards = rewards + penalty
        metrics["objective/overlong_penalty"] = float(penalty.mean(dtype=np.float64))
    beta = config.beta if config.kl_placement == "reward" else 0.0
    kl = sequence_kl(scored)
    return penalised(rewards, kl, beta), metrics | penalty_metrics(rewards, kl, beta)


def _weighted_sum(losses: Tensor, batch: MicroBatch, config: GrpoConfig) -> Tensor:
    match config.loss_type:
        case "dapo" | "cispo":
            return losses.sum() / batch.totals.tokens
        case "grpo":
            return completion_means(losses, batch).sum() / batch.totals.completions
        case "dr_grpo":
            assert config.fixed_length is not None
            return losses.sum() / (batch.totals.completions * config.fixed_length)


ALGORITHM = Algorithm(prepare=prepare, loss=loss)
