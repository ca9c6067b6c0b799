"""Truncated importance sampling for the engine–learner mismatch (https://fengyao.notion.site/off-policy-rl).

The engine samples from μ, which differs slightly from the learner's π_old: other kernels, other precision or, where
generation runs ahead of learning, older weights. Weighted by π_old/μ, samples of μ have the expectations of samples of
π_old. The weight is unbounded; a cap C introduces some bias and bounds the variance:

    w = min(ρ, C)          truncate
    w = ρ if ρ ≤ C else 0  mask

where ρ = π_old/μ of each token, or of the whole completion (the product over its tokens, which is unbiased below the
cap but has a larger variance). The weight applies to the policy's loss. A KL in the loss is not weighted, so that it
also restrains completions whose weight is 0.
"""

from __future__ import annotations

import numpy as np

from workers.algorithms.advantages import completion_sums, spread
from workers.config import PolicyGradient
from workers.stats import Metrics
from workers.types import Floats, ScoredBatch


def importance_weights(scored: ScoredBatch, config: PolicyGradient) -> tuple[Floats | None, Metrics]:
    """Return the weight of each token's loss, [T], and metrics of the weights. None: no correction."""
    if not config.vllm_importance_sampling_correction:
        return None, {}
    assert scored.learner_logprobs is not None, "the correction needs the learner's own log-probabilities"
    assert scored.experience.logprobs is not None
    gap, completions = scored.learner_logprobs - scored.experience.logprobs, scored.experience.completions
    level, _, constraint = config.vllm_importance_sampling_mode.partition("_")
    per_sequence = level == "sequence"
    log_ratios = completion_sums(gap, completions) if per_sequence else gap.astype(np.float64)
    log_cap = np.log(config.vllm_importance_sampling_clip_max)
    # Capped before exp: the ratio of a long completion may exceed the range of floats.
    ratios = np.exp(np.minimum(log_ratios, log_cap))
    if constraint == "mask":
        ratios = np.where(log_ratios > log_cap, 0.0, ratios)
    metrics = {
        f"sampling/importance_sampling_ratio/{name}": float(figure)
        for name, figure in (("min", ratios.min()), ("mean", ratios.mean()), ("max", ratios.max()))
    }
    weights = ratios.astype(np.float32)
    return (spread(weights, completions) if per_sequence else weights), metrics
