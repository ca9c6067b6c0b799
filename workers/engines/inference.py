"""Inference with a model that is whole in one process: the reference without ZeRO-3, and reward models."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from workers.engines.attention import layout_of
from workers.engines.hf_models import Module
from workers.packing import Packed


def default_device() -> torch.device:
    """Return the GPU of this process if it has one, else the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


class WholeModel:
    """A model on one device, for inference only. Its methods are those of `DeepSpeedEngine`."""

    def __init__(self, module: Module, device: torch.device) -> None:
        """Wrap `module`, which is on `device` and in evaluation mode."""
        self._module, self._device = module, device
        self.apart = module.packing.apart

    def infer(self, packed: Packed, temperature: float = 1.0) -> torch.Tensor:
        """Return the model's outputs for the target tokens of a packed batch: [T]."""
        return self._run(packed, temperature, hidden=False)

    def hidden(self, packed: Packed) -> torch.Tensor:
        """Return the last hidden states from which the target tokens are predicted: [T, h]."""
        return self._run(packed, 1.0, hidden=True)

    def _run(self, packed: Packed, temperature: float, *, hidden: bool) -> torch.Tensor:
        tokens, positions, predictors, targets = (
            torch.from_numpy(a.astype(np.int64)).to(self._device)
            for a in (packed.tokens, packed.positions, packed.predictors, packed.targets)
        )
        module: Any = self._module
        with torch.no_grad():
            layout, wanted = layout_of(packed, self._device), None if hidden else targets
            outputs: torch.Tensor = module(tokens, positions, layout, predictors, wanted, temperature)[0]
        return outputs

    def free(self) -> None:
        """Release the model."""
        del self._module


def as_numpy(states: torch.Tensor) -> NDArray[Any]:
    """Copy hidden states into a numpy array; bfloat16 as its bits, in uint16."""
    states = states.cpu()
    return (states.view(torch.uint16) if states.dtype == torch.bfloat16 else states).numpy()
