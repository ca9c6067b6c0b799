"""Proximal policy optimisation with a critic (arXiv 1707.06347), as RLHF uses it (arXiv 2203.02155).

With ρ_t = π(y_t) / π_old(y_t), where π_old is the distribution that was really sampled:

    policy   L = mean over the update's tokens of −min(ρ_t A_t, clip(ρ_t, 1 − ε, 1 + ε) A_t)
    critic   L = mean of max((V_t − R_t)², (clip(V_t, V_old ± ε_v) − R_t)²) / 2
    with     A = GAE(r, V_old), R = A + V_old, and A whitened over the step before the policy sees it

What is optimised. A token's reward is −β (log π_old − log π_ref), β = `kl_coef`, plus the score on the last
token: k1 as a reward. A completion's rewards add up to r(y) − β log(π/π_ref), so the expected return is
E_π[r] − β KL(π‖π_ref). Its gradient is E[(r − β log(π/π_ref)) ∇log π], since the remaining term −β E[∇log π]
is zero: treating the penalty as a constant reward loses nothing. On the simplex it vanishes where r − β
log(π/π_ref) is the same for all y, that is at

    π*(y|x) ∝ π_ref(y|x) exp(r(x, y)/β).
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from workers.algorithms.advantages import gae, token_rewards, whiten
from workers.algorithms.base import Algorithm, MicroBatch, Stats
from workers.algorithms.metrics import rollout_metrics, sequence_kl
from workers.algorithms.ops import kl_k2, per_token, share
from workers.config import PpoConfig
from workers.needs import NEEDS
from workers.types import Evidence, Finish, Floats, Metrics, TrainBatch


def prepare(evidence: Evidence, config: PpoConfig) -> tuple[TrainBatch, Metrics]:
    """One completion per row: advantages for the policy, old values and returns for the critic."""
    experience, values = evidence.experience, evidence.values
    completions, old = experience.completions, experience.logprobs
    assert old is not None
    assert values is not None
    scores = _scores(evidence, config)
    penalty = None
    if config.kl_coef:
        assert evidence.reference_logprobs is not None
        penalty = config.kl_coef * (old - evidence.reference_logprobs)
    rewards = token_rewards(scores, completions, penalty)
    if config.whiten_rewards:
        rewards = whiten(rewards, shift_mean=False)
    advantages = gae(rewards, values, completions, gamma=config.gamma, lam=config.lam)
    batch = TrainBatch(
        prompts=experience.prompt_tokens.take(experience.group_of),
        completions=completions,
        row_offsets=np.arange(len(completions) + 1),
        old_logprobs=old,
        advantages=whiten(advantages),
        old_values=values,
        returns=advantages + values,
    )
    return batch, _metrics(evidence, scores, config)


def loss(logprobs: Tensor, batch: MicroBatch, config: PpoConfig) -> tuple[Tensor, Stats]:
    """The clipped surrogate of the policy, averaged over the update's tokens. `logprobs`: [T]."""
    old, advantages = per_token(batch, batch.old_logprobs), per_token(batch, batch.advantages)
    losses, ratio = clipped_surrogate(per_token(batch, logprobs), old, advantages, config.cliprange, config.cliprange)
    low, high = clipped(ratio, advantages, config.cliprange, config.cliprange)
    tokens = batch.totals.tokens
    return losses.sum() / tokens, {
        "loss": share(losses, tokens),
        "loss/policy_avg": share(losses, tokens),
        "policy/approxkl_avg": share(kl_k2(logprobs, old), tokens),
        "policy/clipfrac_avg": share(low | high, tokens),
        "val/ratio": share(ratio, tokens),
    }


def critic_loss(values: Tensor, batch: MicroBatch, config: PpoConfig) -> tuple[Tensor, Stats]:
    """The critic's clipped squared error, averaged over the update's tokens. `values`: [T]."""
    old, returns = per_token(batch, batch.old_values), per_token(batch, batch.returns)
    near = old + (per_token(batch, values) - old).clamp(-config.cliprange_value, config.cliprange_value)
    free, bound = (values - returns).square(), (near - returns).square()
    losses = 0.5 * torch.maximum(free, bound)
    tokens = batch.totals.tokens
    return losses.sum() / tokens, {
        "loss/value_avg": share(losses, tokens),
        "val/clipfrac_avg": share(bound > free, tokens),
    }


def clipped_surrogate(
    logprobs: Tensor, old_logprobs: Tensor, advantages: Tensor, low: float, high: float
) -> tuple[Tensor, Tensor]:
    """The loss of each token, −min(ρA, clip(ρ, 1 − low, 1 + high) A), and its ratio ρ: [T], [T]."""
    ratio = torch.exp(logprobs - old_logprobs)
    return torch.maximum(-advantages * ratio, -advantages * ratio.clamp(1 - low, 1 + high)), ratio


def clipped(ratio: Tensor, advantages: Tensor, low: float, high: float) -> tuple[Tensor, Tensor]:
    """Tokens whose gradient the clipping has cut, at the lower and at the upper bound: [T], [T] bool."""
    return (ratio < 1 - low) & (advantages < 0), (ratio > 1 + high) & (advantages > 0)


def _scores(evidence: Evidence, config: PpoConfig) -> Floats:
    """Rewards [N], less `missing_eos_penalty` for a completion that did not end by itself."""
    assert evidence.rewards is not None
    if config.missing_eos_penalty is None:
        return evidence.rewards
    unfinished = evidence.experience.finish != Finish.stop
    return np.where(unfinished, evidence.rewards - config.missing_eos_penalty, evidence.rewards)


def _metrics(evidence: Evidence, scores: Floats, config: PpoConfig) -> Metrics:
    kl = sequence_kl(evidence)
    score = float(scores.mean(dtype=np.float64))
    non_score = 0.0 if kl is None else -config.kl_coef * float(kl.mean())
    return rollout_metrics(evidence) | {
        "objective/scores": score,
        "objective/non_score_reward": non_score,
        "objective/rlhf_reward": score + non_score,
        "val/num_eos_tokens": float((evidence.experience.finish == Finish.stop).sum()),
    }


PPO = Algorithm(needs=NEEDS["ppo"], prepare=prepare, loss=loss, critic_loss=critic_loss)
