"""What a model does to its logits after its output layer, and to its hidden states before it."""

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
        """Return the transformed logits, float32 as they are given; the given ones may be changed."""
        if self.scale != 1.0:
            logits = logits.mul_(self.scale)
        return logits if self.cap is None else logits.div_(self.cap).tanh_().mul_(self.cap)

    def slope(self, transformed: Tensor) -> Tensor | float:
        """Return ∂z/∂x where z is `transformed`."""
        if self.cap is None:
            return self.scale
        return self.scale * (1 - (transformed / self.cap) ** 2)

    def hidden(self, hidden: Tensor) -> Tensor:
        """Return the hidden states [T, h] that the output layer is given, in their own precision."""
        return hidden if self.input_scale == 1.0 else hidden * self.input_scale


PLAIN = LogitTransform()


def fitted(given: Tensor, answered: Tensor, input_scale: float) -> LogitTransform | None:
    """Return the transform that made `answered` [V] of the logits `given` [V], some of them tiny and some huge; None:
    there is none of this form."""
    if given.shape != answered.shape or not bool(torch.isfinite(answered).all()):
        return None
    least = given.abs().argmin()
    scale = float(answered[least] / given[least])
    if torch.allclose(answered, given * scale, rtol=1e-5, atol=0.0):
        return LogitTransform(scale=scale, input_scale=input_scale)
    cap = float(answered.abs().max())
    found = LogitTransform(scale=scale, cap=cap, input_scale=input_scale)
    return found if torch.allclose(answered, found(given.clone()), rtol=1e-4, atol=1e-6 * cap) else None
