"""A whole model asked in one process, without gradient: the reference, and reward models."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from workers.engines.attention import layout_of
from workers.packing import Packed

Ask: TypeAlias = Callable[[Packed], NDArray[np.float32]]


def own_device() -> torch.device:
    """The GPU of this process, if it was given one."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def asking(module: nn.Module, device: torch.device, temperature: float = 1.0) -> Ask:
    """What `module`, which is on `device`, answers for the tokens of a packed batch: [T]."""

    def ask(packed: Packed) -> NDArray[np.float32]:
        tokens, positions, predictors, targets = (
            torch.from_numpy(a.astype(np.int64)).to(device)
            for a in (packed.tokens, packed.positions, packed.predictors, packed.targets)
        )
        with torch.no_grad():
            answers: torch.Tensor = module(
                tokens, positions, layout_of(packed, device), predictors, targets, temperature
            )[0]
        return answers.cpu().numpy()

    return ask
