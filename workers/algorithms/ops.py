"""Tensor functions shared by the losses. Token tensors are flat: the tokens of all completions in one tensor.

Three estimators of the KL between the policy π and another distribution q, from the log-probabilities of one sampled
token (Schulman, http://joschu.net/blog/kl-approx.html). With d = log π − log q and y ~ π:

    estimator              E[value]        E[gradient of the value]
    k1 = d                 KL(π‖q)         0
    k2 = d² / 2            about KL(π‖q)   ∇KL(π‖q)
    k3 = exp(−d) − 1 + d   KL(π‖q)         ∇KL(q‖π)

As a loss, an estimator optimises the right column. It is not the gradient of the middle column, because y is itself
drawn from π:

    k1   E[∇log π] = 0
    k2   E[d ∇log π] = ∇KL(π‖q)
    k3   E[(1 − q/π) ∇log π] = −Σ q ∇log π = ∇KL(q‖π)

As a reward, through which no gradient flows, k1 gives ∇KL(π‖q) exactly (arXiv 2506.09477).
"""

from __future__ import annotations

import torch
from torch import Tensor

from workers.algorithms.base import MicroBatch, Stats


def per_token(batch: MicroBatch, values: Tensor | None) -> Tensor:
    """Check that `values` has one floating-point number for each token of `batch`, [T], and return it."""
    assert values is not None, "the batch lacks a field that this loss needs"
    assert values.shape == batch.completion_of.shape, f"{values.shape} is not {batch.completion_of.shape}"
    assert values.is_floating_point(), values.dtype
    return values


def segment_sum(values: Tensor, segment_of: Tensor, num_segments: int) -> Tensor:
    """Sum `values` [T] over the segments given by `segment_of` [T]: [num_segments].

    >>> segment_sum(torch.tensor([1.0, 2.0, 4.0]), torch.tensor([0, 0, 1]), 2)
    tensor([3., 4.])
    """
    assert values.ndim == 1, values.shape
    assert values.shape == segment_of.shape, (values.shape, segment_of.shape)
    assert segment_of.dtype == torch.int64, segment_of.dtype
    return values.new_zeros(num_segments).index_add(0, segment_of, values)


def completion_sums(values: Tensor, batch: MicroBatch) -> Tensor:
    """Sum `values` over each completion's tokens: [T] -> [n]."""
    return segment_sum(values, batch.completion_of, len(batch.lengths))


def completion_means(values: Tensor, batch: MicroBatch) -> Tensor:
    """Average `values` over each completion's tokens: [T] -> [n]."""
    return completion_sums(values, batch) / batch.lengths


def share(values: Tensor, count: float) -> Tensor:
    """Return this micro-batch's contribution to a mean over `count` numbers of the whole update, without gradient."""
    return values.detach().sum() / count


def by_objective(batch: MicroBatch, **values: Tensor) -> Stats:
    """Return this micro-batch's contribution to means over the rows of each objective: `pairs/OBJECTIVE/NAME`.

    `values`: numbers of each row by name, [R].
    """
    if batch.objectives is None:
        return {}
    return {
        f"pairs/{of.name}/{name}": share(numbers * (batch.objectives == index), of.rows)
        for index, of in enumerate(batch.totals.objectives)
        for name, numbers in values.items()
        if of.rows
    }


def tokens_by_objective(batch: MicroBatch, **values: Tensor) -> Stats:
    """Return this micro-batch's contribution to means over the tokens of each objective: `tokens/OBJECTIVE/NAME`.

    `values`: numbers of each token by name, [T].
    """
    if batch.objectives is None:
        return {}
    objective_of = batch.objectives[batch.row_of[batch.completion_of]]  # [T]
    return {
        f"tokens/{of.name}/{name}": share(numbers * (objective_of == index), of.tokens)
        for index, of in enumerate(batch.totals.objectives)
        for name, numbers in values.items()
        if of.tokens
    }


def kl_k1(logprobs: Tensor, other: Tensor) -> Tensor:
    """Compute log π − log q: unbiased for KL(π‖q), of either sign, without effect as a loss."""
    return logprobs - other


def kl_k2(logprobs: Tensor, other: Tensor) -> Tensor:
    """Compute (log π − log q)² / 2: biased for KL(π‖q), with an unbiased gradient."""
    return 0.5 * (logprobs - other).square()


def kl_k3(logprobs: Tensor, other: Tensor) -> Tensor:
    """Compute q/π − 1 − log(q/π): unbiased for KL(π‖q) and never negative. As a loss it minimises KL(q‖π)."""
    difference = other - logprobs
    return torch.expm1(difference) - difference
