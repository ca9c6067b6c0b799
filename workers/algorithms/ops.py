"""Tensor functions that losses share. Tokens are flat: those of many completions in one array.

Three estimators of how far the policy π is from another distribution q, each from the log-probabilities of
one sampled token (Schulman, http://joschu.net/blog/kl-approx.html). With d = log π − log q and y ~ π:

    estimator              E[value]        E[gradient of the value]
    k1 = d                 KL(π‖q)         0
    k2 = d² / 2            about KL(π‖q)   ∇KL(π‖q)
    k3 = exp(−d) − 1 + d   KL(π‖q)         ∇KL(q‖π)

The right column is what a loss optimises. It is not the middle one's gradient, as y is itself drawn from π:

    k1   E[∇log π] = 0
    k2   E[d ∇log π] = ∇KL(π‖q)
    k3   E[(1 − q/π) ∇log π] = −Σ q ∇log π = ∇KL(q‖π)

As a reward, where no gradient passes through it, k1 gives ∇KL(π‖q) exactly (arXiv 2506.09477).
"""

from __future__ import annotations

import torch
from torch import Tensor

from workers.algorithms.base import MicroBatch


def per_token(batch: MicroBatch, values: Tensor | None) -> Tensor:
    """`values`, having made sure that they are one floating-point number for each token of `batch`: [T]."""
    assert values is not None, "the batch lacks a field that this loss needs"
    assert values.shape == batch.completion_of.shape, f"{values.shape} is not {batch.completion_of.shape}"
    assert values.is_floating_point(), values.dtype
    return values


def segment_sum(values: Tensor, segment_of: Tensor, num_segments: int) -> Tensor:
    """Sums of `values` [T] over the segments that `segment_of` [T] names: [num_segments].

    >>> segment_sum(torch.tensor([1.0, 2.0, 4.0]), torch.tensor([0, 0, 1]), 2)
    tensor([3., 4.])
    """
    assert values.ndim == 1, values.shape
    assert values.shape == segment_of.shape, (values.shape, segment_of.shape)
    assert segment_of.dtype == torch.int64, segment_of.dtype
    return values.new_zeros(num_segments).index_add(0, segment_of, values)


def completion_sums(values: Tensor, batch: MicroBatch) -> Tensor:
    """Sum over each completion's tokens: [T] -> [n]."""
    return segment_sum(values, batch.completion_of, len(batch.lengths))


def completion_means(values: Tensor, batch: MicroBatch) -> Tensor:
    """Mean over each completion's tokens: [T] -> [n]."""
    return completion_sums(values, batch) / batch.lengths


def share(values: Tensor, count: int) -> Tensor:
    """This micro-batch's part in a mean over `count` numbers of the whole update; without gradient."""
    return values.detach().sum() / count


def kl_k1(logprobs: Tensor, other: Tensor) -> Tensor:
    """log π − log q: unbiased for KL(π‖q), of either sign, no use as a loss."""
    return logprobs - other


def kl_k2(logprobs: Tensor, other: Tensor) -> Tensor:
    """(log π − log q)² / 2: biased for KL(π‖q), its gradient is not."""
    return 0.5 * (logprobs - other).square()


def kl_k3(logprobs: Tensor, other: Tensor) -> Tensor:
    """q/π − 1 − log(q/π): unbiased for KL(π‖q) and never negative; as a loss it minimises KL(q‖π)."""
    difference = other - logprobs
    return torch.expm1(difference) - difference
