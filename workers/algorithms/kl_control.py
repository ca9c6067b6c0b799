"""A KL coefficient that holds the policy at a chosen distance from the reference (arXiv 1909.08593, section 2.2).

e = clip(KL/target − 1, −0.2, 0.2)
β ← β (1 + e n/horizon)   after a step of n completions
"""

from __future__ import annotations

from workers.config import AdaptiveKl

LARGEST_ERROR = 0.2


def next_coefficient(coefficient: float, settings: AdaptiveKl, *, kl: float, num_completions: int) -> float:
    """The coefficient of the next step. `kl`: nats per completion, the mean over this step's samples."""
    error = min(max(kl / settings.target - 1, -LARGEST_ERROR), LARGEST_ERROR)
    return coefficient * (1 + error * num_completions / settings.horizon)
