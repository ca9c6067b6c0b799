"""Proximal policy optimisation (arXiv 1707.06347) with a critic, as used in RLHF (arXiv 2203.02155).

With ρ_t = π(y_t) / π_old(y_t), where π_old is the distribution that was sampled from:

    policy   L = mean over the update's tokens of −min(ρ_t A_t, clip(ρ_t, 1 − ε, 1 + ε) A_t)
    critic   L = mean of max((V_t − R_t)², (clip(V_t, V_old ± ε_v) − R_t)²) / 2
    where    A = GAE(r, V_old) and R = A + V_old; in the policy's loss A is whitened over the step

Optimum. A token's reward is −β (log π_old − log π_ref) with β = `kl_coef` (k1 as a reward), plus the score on the last
token. A completion's rewards add up to r(y) − β log(π/π_ref), so the expected return is E_π[r] − β KL(π‖π_ref). Its
gradient is E[(r − β log(π/π_ref)) ∇log π]: the remaining term −β E[∇log π] is zero, so the penalty can be treated as a
constant reward. On the simplex the gradient vanishes where r − β log(π/π_ref) is the same for all y, which is

    π*(y|x) ∝ π_ref(y|x) exp(r(x, y)/β).

`kl_placement: loss` instead adds β k2 or β k3 of each token to the policy's loss. On samples of π

    k2 = (log π/π_ref)²/2            E_π[∇k2] = E_π[log(π/π_ref) ∇log π]  = ∇KL(π‖π_ref), the reverse KL
    k3 = π_ref/π − 1 − log(π_ref/π)  E_π[∇k3] = E_π[(1 − π_ref/π) ∇log π] = ∇KL(π_ref‖π), the forward KL

The advantages are whitened and the KL in the loss is not, so β is in units of the standard deviation σ of r − E_π[r]
over a step's completions. For completions of one token the optimum under k2 is π* with βσ in place of β, and under k3
it is GRPO's β σ π_ref/(λ − r), where σ is that of the optimum itself. Under k2 there is no optimum for a small β: as
the policy becomes more certain, σ shrinks, and with it the weight of the KL.

`adaptive_kl` adapts `kl_coef` after each step (arXiv 1909.08593, section 2.2), which holds the KL near a target:

    e = clip(KL/target − 1, −0.2, 0.2)
    β ← β (1 + e n/horizon)   after a step of n completions

Critic and policy are two models with their own optimisers, so there is no `vf_coef` to balance the two losses:
`critic_learning_rate` sets the critic's learning rate. With `vllm_importance_sampling_correction` the policy's loss is
weighted, and the critic is trained on the unweighted returns.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from workers.algorithms.advantages import gae, token_rewards, whiten
from workers.algorithms.base import Algorithm, Control, MicroBatch, Stats
from workers.algorithms.importance_sampling import importance_weights
from workers.algorithms.metrics import rollout_metrics, sequence_kl
from workers.algorithms.ops import kl_k2, kl_k3, per_token, share
from workers.algorithms.policy_loss import clipped, clipped_surrogate, corrected, log_ratio
from workers.config import AdaptiveKl, PpoConfig
from workers.stats import Metrics
from workers.types import Finish, Floats, ScoredBatch, TrainBatch

LARGEST_KL_ERROR = 0.2


def prepare(scored: ScoredBatch, config: PpoConfig) -> tuple[TrainBatch, Metrics]:
    """Make one row of each completion, with advantages for the policy and old values and returns for the critic."""
    experience, values = scored.experience, scored.values
    completions, old = experience.completions, scored.old_logprobs
    assert values is not None
    scores = _scores(scored, config)
    penalty = None
    if config.kl_coef and config.kl_placement == "reward":
        assert scored.reference_logprobs is not None
        penalty = config.kl_coef * (old - scored.reference_logprobs)
    rewards = token_rewards(scores, completions, penalty)
    if config.whiten_rewards:
        rewards = whiten(rewards, shift_mean=False)
    advantages = gae(rewards, values, completions, gamma=config.gamma, lam=config.lam)
    weights, gap = importance_weights(scored, config)
    batch = TrainBatch(
        prompts=experience.prompt_tokens.take(experience.group_of),
        completions=completions,
        row_offsets=np.arange(len(completions) + 1),
        old_logprobs=old,
        reference_logprobs=scored.reference_logprobs if config.kl_placement == "loss" else None,
        advantages=whiten(advantages),
        old_values=values,
        returns=advantages + values,
        importance_weights=weights,
    )
    return batch, _metrics(scored, scores, config) | _explained_variance(advantages, values) | gap


def loss(logprobs: Tensor, batch: MicroBatch, config: PpoConfig) -> tuple[Tensor, Stats]:
    """Compute the policy's clipped surrogate, plus a KL in the loss, averaged over the update's tokens.

    `logprobs`: [T].
    """
    old, advantages = per_token(batch, batch.old_logprobs), per_token(batch, batch.advantages)
    clip, tokens = config.cliprange, batch.totals.tokens
    losses, ratio = clipped_surrogate(log_ratio(logprobs, batch, "token"), advantages, clip, clip)
    low, high = clipped(ratio, advantages, clip, clip)
    losses = corrected(losses, batch)
    stats = {
        "policy/approxkl_avg": share(kl_k2(logprobs, old), tokens),
        "policy/clipfrac_avg": share(low | high, tokens),
        "val/ratio": share(ratio, tokens),
    }
    if batch.reference_logprobs is not None:
        estimate = kl_k2 if config.kl_estimator == "k2" else kl_k3
        kl = estimate(logprobs, per_token(batch, batch.reference_logprobs))
        stats["kl"] = share(kl, tokens)
        losses = losses + config.kl_coef * kl
    averaged = share(losses, tokens)
    return losses.sum() / tokens, stats | {"loss": averaged, "loss/policy_avg": averaged}


def critic_loss(values: Tensor, batch: MicroBatch, config: PpoConfig) -> tuple[Tensor, Stats]:
    """Compute the critic's clipped squared error, averaged over the update's tokens. `values`: [T]."""
    old, returns = per_token(batch, batch.old_values), per_token(batch, batch.returns)
    near = old + (per_token(batch, values) - old).clamp(-config.cliprange_value, config.cliprange_value)
    free, bound = (values - returns).square(), (near - returns).square()
    losses = 0.5 * torch.maximum(free, bound)
    tokens = batch.totals.tokens
    return losses.sum() / tokens, {
        "loss/value_avg": share(losses, tokens),
        "val/clipfrac_avg": share(bound > free, tokens),
    }


def next_kl_coef(scored: ScoredBatch, config: PpoConfig) -> float:
    """Return the KL coefficient of the next step, which equals this step's unless it is adaptive."""
    kl = sequence_kl(scored)
    if config.adaptive_kl is None or kl is None:
        return config.kl_coef
    return next_coefficient(config.kl_coef, config.adaptive_kl, kl=float(kl.mean()), num_completions=len(kl))


def next_coefficient(coefficient: float, settings: AdaptiveKl, *, kl: float, num_completions: int) -> float:
    """Return the adaptive KL coefficient of the next step. `kl`: mean over this step's samples, in nats."""
    error = min(max(kl / settings.target - 1, -LARGEST_KL_ERROR), LARGEST_KL_ERROR)
    return coefficient * (1 + error * num_completions / settings.horizon)


def _scores(scored: ScoredBatch, config: PpoConfig) -> Floats:
    """Return rewards, [N], minus `missing_eos_penalty` for completions without an end of sequence."""
    assert scored.rewards is not None
    if config.missing_eos_penalty is None:
        return scored.rewards
    unfinished = scored.experience.finish != Finish.stop
    return np.where(unfinished, scored.rewards - config.missing_eos_penalty, scored.rewards)


def _metrics(scored: ScoredBatch, scores: Floats, config: PpoConfig) -> Metrics:
    kl = sequence_kl(scored)
    score = float(scores.mean(dtype=np.float64))
    non_score = -config.kl_coef * float(kl.mean()) if kl is not None and config.kl_placement == "reward" else 0.0
    return rollout_metrics(scored) | {
        "objective/scores": score,
        "objective/non_score_reward": non_score,
        "objective/rlhf_reward": score + non_score,
        "val/num_eos_tokens": float((scored.experience.finish == Finish.stop).sum()),
    }


def _explained_variance(advantages: Floats, values: Floats) -> Metrics:
    """Return the share of the returns' variance that the critic predicts: 1 − Var(R − V)/Var(R), with R − V = A.

    1: exact; 0: no better than a constant; negative: worse than that. It is unknown if all returns are equal.
    """
    variance = float(np.var(advantages.astype(np.float64) + values))
    if not variance:
        return {}
    return {"val/explained_variance": 1 - float(np.var(advantages, dtype=np.float64)) / variance}


ALGORITHM = Algorithm(
    prepare=prepare,
    loss=loss,
    critic_loss=critic_loss,
    control=Control(name="kl_coef", after=next_kl_coef),
)
