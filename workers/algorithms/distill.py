"""Distillation: train the policy on a teacher's distribution of the next token (GKD, arXiv 2306.13649).

With π the policy and π_T the teacher, both at `temperature`, y_<t the prefix and T the number of tokens in the update:

    divergence        L = 1/T Σ_t D_β(π_T(·|y_<t), π(·|y_<t))                        over the whole vocabulary
    policy_gradient   L = 1/T Σ_t −min(ρ_t A_t, clip(ρ_t, 1 − ε, 1 + ε) A_t),  A_t = log π_T(y_t) − log π_old(y_t)

D_β is the generalised Jensen–Shannon divergence of workers/engines/divergence.py: β = 0 is KL(π_T‖π), β = 1 is
KL(π‖π_T). The completions are samples of the policy (on-policy distillation: it is trained in the states that it
visits itself), samples of the teacher (`sampler: teacher`), or those of a dataset. On samples of the teacher with β = 0
the expected sum over a completion's tokens is the sequence-level KL(π_T‖π); SFT on the same samples has the same
expected gradient with a larger variance.

Optimum. Neither objective has a gradient through the sampling of the prefix: the divergence of each state is minimised
on its own and never traded for that of a later state. At a loss of zero the policy equals the teacher on all prefixes
that occur, for every β. `policy_gradient` is the reverse KL estimated from the sampled token: k1 as the reward of that
token alone (discount 0). For y_t ~ π, E[A_t ∇log π] = −∇KL(π‖π_T): in expectation the gradient of `divergence` at
β = 1, with the variance of a single sample. It needs one number per token from the teacher instead of a vector.
"""

from __future__ import annotations

import numpy as np
from torch import Tensor

from workers.algorithms.base import Algorithm, MicroBatch, Stats
from workers.algorithms.metrics import num_tokens, rollout_metrics
from workers.algorithms.ops import per_token, share
from workers.algorithms.policy_loss import clipped, clipped_surrogate, log_ratio
from workers.config import DistillConfig
from workers.stats import Metrics
from workers.types import ScoredBatch, TrainBatch


def prepare(scored: ScoredBatch, config: DistillConfig) -> tuple[TrainBatch, Metrics]:
    """Make one row of the completions of each prompt. Only the policy gradient has advantages."""
    experience, teacher = scored.experience, scored.reference_logprobs
    sampled = experience.logprobs is not None
    metrics: Metrics = rollout_metrics(scored) if sampled else {"num_tokens": float(num_tokens(experience))}
    advantages = None
    if config.objective == "policy_gradient":
        assert experience.logprobs is not None, "the policy gradient needs the policy's own samples"
        assert teacher is not None
        advantages = (teacher - experience.logprobs).astype(np.float32)
    else:
        assert scored.reference_hidden is not None
    batch = TrainBatch(
        prompts=experience.prompt_tokens,
        completions=experience.completions,
        row_offsets=experience.group_offsets,
        old_logprobs=experience.logprobs if advantages is not None else None,
        reference_logprobs=teacher,
        reference_hidden=scored.reference_hidden,
        advantages=advantages,
    )
    return batch, metrics


def loss(outputs: Tensor, batch: MicroBatch, config: DistillConfig) -> tuple[Tensor, Stats]:
    """Compute the mean loss over the update's tokens.

    Args:
        outputs: divergences from the teacher, [T]; for the policy gradient, log-probabilities.
    """
    outputs, tokens = per_token(batch, outputs), batch.totals.tokens
    if config.objective == "divergence":
        return outputs.sum() / tokens, {"loss": share(outputs, tokens), "divergence": share(outputs, tokens)}
    advantages = per_token(batch, batch.advantages)
    losses, ratio = clipped_surrogate(log_ratio(outputs, batch, "token"), advantages, config.epsilon, config.epsilon)
    low, high = clipped(ratio, advantages, config.epsilon, config.epsilon)
    return losses.sum() / tokens, {
        "loss": share(losses, tokens),
        "divergence": share(-advantages, tokens),  # k1 before the step
        "clip_ratio/low_mean": share(low, tokens),
        "clip_ratio/high_mean": share(high, tokens),
        "clip_ratio/region_mean": share(low | high, tokens),
    }


ALGORITHM = Algorithm(prepare=prepare, loss=loss)
