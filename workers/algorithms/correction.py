"""Truncated importance sampling for the gap between engine and learner (https://fengyao.notion.site/off-policy-rl).

The engine samples from μ, which is not quite the π_old that learns: other kernels, other precision, or, in a run that
is ahead of its learner, older weights. Weighted by π_old/μ, samples of μ have the expectations of samples of π_old.
The weight has no upper bound, and a cap C trades some bias for a bounded variance:

    w = min(ρ, C)         truncate
    w = ρ if ρ ≤ C else 0  mask

with ρ = π_old/μ of each token, or of the whole completion (a product over its tokens:
unbiased below the cap, but wide). The policy's loss is weighted; a KL in the loss is not, so that it also holds a
completion whose weight is 0.
"""

from __future__ import annotations

import numpy as np

from workers.algorithms.advantages import completion_sums, spread
from workers.config import PolicyGradient
from workers.types import Floats, Metrics, ScoredBatch


def importance_weights(scored: ScoredBatch, config: PolicyGradient) -> tuple[Floats | None, Metrics]:
    """The weight of each token's loss [T], and how large they are. None: nothing is corrected."""
    if not config.vllm_importance_sampling_correction:
        return None, {}
    assert scored.learner_logprobs is not None, "the correction needs the learner's own log-probabilities"
    assert scored.experience.logprobs is not None
    gap, completions = scored.learner_logprobs - scored.experience.logprobs, scored.experience.completions
    level, _, constraint = config.vllm_importance_sampling_mode.partition("_")
    whole = level == "sequence"
    log_ratios = completion_sums(gap, completions) if whole else gap.astype(np.float64)
    log_cap = np.log(config.vllm_importance_sampling_clip_max)
    # Bounded before exp: a long completion's ratio may be beyond any float.
    ratios = np.exp(np.minimum(log_ratios, log_cap))
    if constraint == "mask":
        ratios = np.where(log_ratios > log_cap, 0.0, ratios)
    metrics = {
        f"sampling/importance_sampling_ratio/{name}": float(figure)
        for name, figure in (("min", ratios.min()), ("mean", ratios.mean()), ("max", ratios.max()))
    }
    weights = ratios.astype(np.float32)
    return (spread(weights, completions) if whole else weights), metrics
