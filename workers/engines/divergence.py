"""How far a model's next-token distribution is from another model's, without ever holding logits of all tokens.

With p the student's softmax and q the teacher's, both at one temperature, and m = (1 − β) p + β q:

    D_β = β KL(q‖m) + (1 − β) KL(p‖m)        0 < β < 1   generalised Jensen–Shannon (arXiv 2306.13649, equation 1)
    D_0 = KL(q‖p)                            forward KL: covers what the teacher may say
    D_1 = KL(p‖q)                            reverse KL: says only what the teacher would say

The ends are the limits of D_β / (β (1 − β)), as D_β itself vanishes there. As in TRL's GKD no factor makes up for the
temperature. With z the student's logits divided by it, the gradient of a token's value is

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
    """What turns a model's last hidden states into logits: f(h Wᵀ + b)."""

    weight: Tensor  # [V, h]
    bias: Tensor | None = None  # [V]
    transform: LogitTransform = PLAIN

    def to(self, device: torch.device) -> OutputLayer:
        bias = None if self.bias is None else self.bias.to(device)
        return replace(self, weight=self.weight.to(device), bias=bias)


@dataclass(frozen=True, kw_only=True, slots=True)
class Target:
    """The distributions of another model at T positions, as that model's last hidden states and its output layer."""

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
    """D_β of each position and the student's entropy there, float32 [T] both; gradient for the first alone.

    `hidden` [T, h], `weight` [V, h], `bias` [V] and `transform` are the student's. Where one output layer has more rows
    than the other (embeddings padded to a round number) both end with the shorter: no token of a shared tokenizer is
    cut off.
    """
    assert len(hidden) == len(target.hidden), (hidden.shape, target.hidden.shape)
    return cast(
        "tuple[Tensor, Tensor]",
        _ChunkedDivergence.apply(hidden, weight, bias, target, temperature, chunk, transform),  # type: ignore[no-untyped-call]
    )


class _ChunkedDivergence(torch.autograd.Function):
    """`chunk` rows of both models' logits at a time, formed anew in the backward pass: [chunk, V] instead of [T, V]."""

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
    """Log-probabilities of student and teacher, a chunk of positions at a time, [c, V] and [c, V], with the slope of
    the student's logit transform there; None: it has none."""
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
    """Sums over a vocabulary are taken in float32 at least."""
    return torch.promote_types(hidden.dtype, torch.float32)


def _value(ours: Tensor, theirs: Tensor, beta: float) -> Tensor:
    """D_β from log-probabilities [c, V]: [c]."""
    if beta == 0:
        return _kl(theirs, ours)
    if beta == 1:
        return _kl(ours, theirs)
    mixture = _mixture(ours, theirs, beta)
    return beta * _kl(theirs, mixture) + (1 - beta) * _kl(ours, mixture)


def _gradient(ours: Tensor, theirs: Tensor, beta: float) -> Tensor:
    """∂D_β / ∂ the student's logits: [c, V]."""
    p = ours.exp()
    if beta == 0:
        return p - theirs.exp()
    g = ours - theirs if beta == 1 else (ours - _mixture(ours, theirs, beta)) * (1 - beta)
    return p * (g - (p * g).sum(-1, keepdim=True))


def _mixture(ours: Tensor, theirs: Tensor, beta: float) -> Tensor:
    return torch.logaddexp(ours + math.log1p(-beta), theirs + math.log(beta))


def _kl(of: Tensor, to: Tensor) -> Tensor:
    """KL(of‖to) from log-probabilities [c, V]: [c]."""
    return (of.exp() * (of - to)).sum(-1)
