"""Scaling and soft-capping of a model's logits, and scaling of the hidden states before its output layer."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, kw_only=True, slots=True)
class LogitTransform:
    """z = scale · x, or cap · tanh(scale · x / cap), with x = (input_scale · h) Wᵀ + b.

    Gemma 2 has a `cap` of 30, Cohere a `scale` of 0.0625, MiniCPM an `input_scale` below 1.
    """

    scale: float = 1.0
    cap: float | None = None
    input_scale: float = 1.0

    def __call__(self, logits: Tensor) -> Tensor:
        """Transform float32 logits. The argument may be modified."""
        if self.scale != 1.0:
            logits = logits.mul_(self.scale)
        return logits if self.cap is None else logits.div_(self.cap).tanh_().mul_(self.cap)

    def slope(self, transformed: Tensor) -> Tensor | float:
        """Return ∂z/∂x at z = `transformed`."""
        if self.cap is None:
            return self.scale
        return self.scale * (1 - (transformed / self.cap) ** 2)

    def hidden(self, hidden: Tensor) -> Tensor:
        """Return the input [T, h] of the output layer, in the dtype of the hidden states."""
        return hidden if self.input_scale == 1.0 else hidden * self.input_scale


PLAIN = LogitTransform()


def fit(logits: Tensor, transformed: Tensor, input_scale: float) -> LogitTransform | None:
    """Return the transform that maps `logits` [V] to `transformed` [V]; None: there is none of this form.

    The logits must include very small and very large values.
    """
    if logits.shape != transformed.shape or not bool(torch.isfinite(transformed).all()):
        return None
    smallest = logits.abs().argmin()
    scale = float(transformed[smallest] / logits[smallest])
    if torch.allclose(transformed, logits * scale, rtol=1e-5, atol=0.0):
        return LogitTransform(scale=scale, input_scale=input_scale)
    cap = float(transformed.abs().max())
    capped = LogitTransform(scale=scale, cap=cap, input_scale=input_scale)
    return capped if torch.allclose(transformed, capped(logits.clone()), rtol=1e-4, atol=1e-6 * cap) else None
