"""Divergence of a model's next-token distributions from another model's, without storing the logits of all tokens.

With p the student's softmax and q the teacher's, both at the same temperature, and m = (1 − β) p + β q:

    D_β = β KL(q‖m) + (1 − β) KL(p‖m)        0 < β < 1   generalised Jensen–Shannon (arXiv 2306.13649, equation 1)
    D_0 = KL(q‖p)                            forward KL: mass-covering
    D_1 = KL(p‖q)                            reverse KL: mode-seeking

The ends are the limits of D_β / (β (1 − β)), because D_β itself vanishes there. As in TRL's GKD, no factor compensates
for the temperature. With z the student's logits divided by the temperature, the gradient for one token is

    β = 0: ∂D/∂z = p − q        else: ∂D/∂z = p (g − Σ p g),  g = log p − log q (β = 1), (1 − β)(log p − log m) (β < 1)
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, cast

import torch
from torch import Tensor

from workers.engines.logits import PLAIN, LogitTransform


@dataclass(frozen=True, kw_only=True, slots=True)
class OutputLayer:
    """Output layer of a model, from its last hidden states to logits: f(h Wᵀ + b)."""

    weight: Tensor  # [V, h]
    bias: Tensor | None = None  # [V]
    transform: LogitTransform = PLAIN

    def to(self, device: torch.device) -> OutputLayer:
        bias = None if self.bias is None else self.bias.to(device)
        return replace(self, weight=self.weight.to(device), bias=bias)


@dataclass(frozen=True, kw_only=True, slots=True)
class Target:
    """Distributions of another model at T positions, given by its last hidden states and its output layer."""

    hidden: Tensor  # [T, h]
    layer: OutputLayer
    beta: float


def divergences(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    target: Target,
    temperature: float,
    chunk: int,
    transform: LogitTransform = PLAIN,
) -> tuple[Tensor, Tensor]:
    """Return D_β and the student's entropy at each position, float32 [T] both. Only D_β has a gradient.

    `hidden` [T, h], `weight` [V, h], `bias` [V] and `transform` are the student's. If one output layer has more rows
    than the other (embeddings padded to a round number), the extra rows are ignored: no token of a shared tokenizer is
    lost. `chunk` positions are computed at a time.
    """
    assert len(hidden) == len(target.hidden), (hidden.shape, target.hidden.shape)
    return cast(
        "tuple[Tensor, Tensor]",
        _ChunkedDivergence.apply(hidden, weight, bias, target, temperature, chunk, transform),  # type: ignore[no-untyped-call]
    )


class _ChunkedDivergence(torch.autograd.Function):
    """Divergences from `chunk` rows of logits at a time, recomputed in the backward pass: [chunk, V] memory."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        target: Target,
        temperature: float,
        chunk: int,
        transform: LogitTransform,
    ) -> tuple[Tensor, Tensor]:
        student = OutputLayer(weight=weight, bias=bias, transform=transform)
        values = hidden.new_empty(len(hidden), dtype=_wide(hidden))
        entropy = torch.empty_like(values)
        for part, ours, theirs, _ in _distributions(hidden, student, target, temperature, chunk):
            values[part] = _value(ours, theirs, target.beta)
            entropy[part] = -(ours.exp() * ours).sum(-1)
        ctx.save_for_backward(hidden, weight, bias)
        ctx.target, ctx.temperature, ctx.chunk, ctx.transform = target, temperature, chunk, transform
        ctx.mark_non_differentiable(entropy)
        return values, entropy

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        hidden, weight, bias = ctx.saved_tensors
        target, temperature = ctx.target, ctx.temperature
        student = OutputLayer(weight=weight, bias=bias, transform=ctx.transform)
        grad_hidden = torch.empty_like(hidden)
        grad_weight = torch.zeros_like(weight)
        grad_bias = torch.zeros_like(bias) if bias is not None else None
        for part, ours, theirs, slope in _distributions(hidden, student, target, temperature, ctx.chunk):
            grad = _gradient(ours, theirs, target.beta).mul_(grads[0][part, None] / temperature)
            grad = (grad if slope is None else grad * slope).to(weight.dtype)
            size = grad.shape[1]
            grad_hidden[part] = grad @ weight[:size]
            grad_weight[:size].addmm_(grad.T, hidden[part])
            if grad_bias is not None:
                grad_bias[:size] += grad.sum(0)
        return grad_hidden, grad_weight, grad_bias, None, None, None, None


def _distributions(
    hidden: Tensor, student: OutputLayer, target: Target, temperature: float, chunk: int
) -> Iterator[tuple[slice, Tensor, Tensor, Tensor | float | None]]:
    """Yield log-probabilities [c, V] of student and teacher for one chunk of positions at a time.

    The last item is the slope of the student's logit transform, or None if it has no transform.
    """
    size = min(len(student.weight), len(target.layer.weight))
    for start in range(0, len(hidden), chunk):
        part = slice(start, min(start + chunk, len(hidden)))
        ours, theirs = (
            _logits(states[part], layer, size) for states, layer in ((hidden, student), (target.hidden, target.layer))
        )
        slope = None if student.transform == PLAIN else student.transform.slope(ours)
        yield part, (ours / temperature).log_softmax(-1), (theirs / temperature).log_softmax(-1), slope


def _logits(hidden: Tensor, layer: OutputLayer, size: int) -> Tensor:
    logits = (hidden @ layer.weight[:size].T).to(_wide(hidden))
    if layer.bias is not None:
        logits += layer.bias[:size]
    return layer.transform(logits)


def _wide(hidden: Tensor) -> torch.dtype:
    """Return the dtype for sums over a vocabulary: at least float32."""
    return torch.promote_types(hidden.dtype, torch.float32)


def _value(ours: Tensor, theirs: Tensor, beta: float) -> Tensor:
    """Compute D_β [c] from log-probabilities [c, V]."""
    if beta == 0:
        return _kl(theirs, ours)
    if beta == 1:
        return _kl(ours, theirs)
    mixture = _mixture(ours, theirs, beta)
    return beta * _kl(theirs, mixture) + (1 - beta) * _kl(ours, mixture)


def _gradient(ours: Tensor, theirs: Tensor, beta: float) -> Tensor:
    """Compute the gradient of D_β for the student's logits: [c, V]."""
    p = ours.exp()
    if beta == 0:
        return p - theirs.exp()
    g = ours - theirs if beta == 1 else (ours - _mixture(ours, theirs, beta)) * (1 - beta)
    return p * (g - (p * g).sum(-1, keepdim=True))


def _mixture(ours: Tensor, theirs: Tensor, beta: float) -> Tensor:
    return torch.logaddexp(ours + math.log1p(-beta), theirs + math.log(beta))


def _kl(of: Tensor, to: Tensor) -> Tensor:
    """Compute KL(of‖to) [c] from log-probabilities [c, V]."""
    return (of.exp() * (of - to)).sum(-1)
