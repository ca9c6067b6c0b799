"""Policy losses: PPO's clipped objective (arXiv 1707.06347) and variants. Pure torch. Token tensors are flat: [T]."""

from __future__ import annotations

from typing import Literal, TypeAlias

import torch
from torch import Tensor

from workers.algorithms.base import MicroBatch
from workers.algorithms.ops import completion_means, completion_sums, per_token

Level: TypeAlias = Literal["token", "sequence", "completion"]


def log_ratio(logprobs: Tensor, batch: MicroBatch, level: Level) -> Tensor:
    """Return log ρ = log π − log π_old of each token, at the given level: [T].

    token       the token's own
    sequence    the mean over its completion, so that ρ is (π(y)/π_old(y))^(1/|y|) (GSPO, arXiv 2507.18071, eq. 7)
    completion  the sum over its completion, so that ρ is π(y)/π_old(y)
    """
    difference = per_token(batch, logprobs) - per_token(batch, batch.old_logprobs)
    match level:
        case "token":
            return difference
        case "sequence":
            return completion_means(difference, batch)[batch.completion_of]
        case "completion":
            return completion_sums(difference, batch)[batch.completion_of]


def clipped_surrogate(
    log_ratio: Tensor, advantages: Tensor, low: float, high: float, ceiling: float | None = None
) -> tuple[Tensor, Tensor]:
    """Compute each token's loss, −min(ρA, clip(ρ, 1 − low, 1 + high) A), and its ratio ρ: [T], [T].

    Where the advantage is negative, ρ is unbounded above. With `ceiling`, the first term has min(ρ, ceiling) in place
    of ρ (arXiv 2505.07291).
    """
    assert log_ratio.shape == advantages.shape, (log_ratio.shape, advantages.shape)
    ratio = torch.exp(log_ratio)
    free = ratio if ceiling is None else ratio.clamp(max=ceiling)
    return torch.maximum(-advantages * free, -advantages * ratio.clamp(1 - low, 1 + high)), ratio


def weighted_likelihood(
    logprobs: Tensor, log_ratio: Tensor, advantages: Tensor, largest: float
) -> tuple[Tensor, Tensor]:
    """Compute each token's loss, −min(ρ, largest) A log π, and its ratio ρ: [T], [T]. The weight has no gradient.

    Unlike under PPO's clipping, no token loses its gradient (CISPO, arXiv 2506.13585, eq. 4).
    """
    assert log_ratio.shape == advantages.shape, (log_ratio.shape, advantages.shape)
    ratio = torch.exp(log_ratio.detach())
    return -ratio.clamp(max=largest) * advantages * logprobs, ratio


def clipped(ratio: Tensor, advantages: Tensor, low: float, high: float) -> tuple[Tensor, Tensor]:
    """Return masks of the tokens whose gradient is clipped at the lower and at the upper bound: [T], [T] bool."""
    return (ratio < 1 - low) & (advantages < 0), (ratio > 1 + high) & (advantages > 0)


def corrected(losses: Tensor, batch: MicroBatch) -> Tensor:
    """Multiply each token's loss by its importance weight, if the batch has weights: [T]."""
    if batch.importance_weights is None:
        return losses
    return losses * per_token(batch, batch.importance_weights)
