"""Distillation: the policy learns another model's distribution of the next token (arXiv 2306.13649, GKD).

With π the policy and π_T the teacher, both at `temperature`, y_<t the prefix, T the number of the update's tokens:

    divergence        L = 1/T Σ_t D_β(π_T(·|y_<t), π(·|y_<t))                        over the whole vocabulary
    policy_gradient   L = 1/T Σ_t −min(ρ_t A_t, clip(ρ_t, 1 − ε, 1 + ε) A_t),  A_t = log π_T(y_t) − log π_old(y_t)

D_β is the generalised Jensen–Shannon divergence of workers/engines/divergence.py: β = 0 is KL(π_T‖π), β = 1 is
KL(π‖π_T). The completions are the policy's own samples (on-policy distillation: it learns where it goes wrong itself),
the teacher's (`sampler: teacher`), or a dataset's. On the teacher's with β = 0 the expectation, over all tokens of a
completion, is the sequence-level KL(π_T‖π): SFT on them has the same gradient on average, with more noise.

What is optimised. Neither objective has a gradient through the sampling of the prefix: each state's divergence is made
small by itself, none is traded for a later one's. So at zero the policy is the teacher wherever the prefixes go,
whatever β. `policy_gradient` is the reverse KL estimated from the sampled token, k1 as a reward of that token alone
(discount 0). For y_t ~ π, E[A_t ∇log π] = −∇KL(π‖π_T): in expectation the gradient of `divergence` at β = 1, with the
noise of one sample. It needs one number per token from the teacher instead of a vector.
"""

from __future__ import annotations

import numpy as np
from torch import Tensor

from workers.algorithms.base import Algorithm, MicroBatch, Stats
from workers.algorithms.metrics import num_tokens, rollout_metrics
from workers.algorithms.ops import per_token, share
from workers.algorithms.surrogate import clipped, clipped_surrogate, log_ratio
from workers.config import DistillConfig
from workers.needs import NEEDS
from workers.types import Metrics, ScoredBatch, TrainBatch


def prepare(scored: ScoredBatch, config: DistillConfig) -> tuple[TrainBatch, Metrics]:
    """The completions of one prompt are a row. Advantages only for the policy gradient."""
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
    """Mean over the update's tokens. `outputs`: [T], divergences from the teacher; log-probabilities for the policy
    gradient."""
    outputs, tokens = per_token(batch, outputs), batch.totals.tokens
    if config.objective == "divergence":
        return outputs.sum() / tokens, {"loss": share(outputs, tokens), "divergence": share(outputs, tokens)}
    advantages = per_token(batch, batch.advantages)
    losses, ratio = clipped_surrogate(log_ratio(outputs, batch, "token"), advantages, config.epsilon, config.epsilon)
    low, high = clipped(ratio, advantages, config.epsilon, config.epsilon)
    return losses.sum() / tokens, {
        "loss": share(losses, tokens),
        "divergence": share(-advantages, tokens),  # k1, before the step
        "clip_ratio/low_mean": share(low, tokens),
        "clip_ratio/high_mean": share(high, tokens),
        "clip_ratio/region_mean": share(low | high, tokens),
    }


DISTILL = Algorithm(needs=NEEDS["distill"], prepare=prepare, loss=loss)
