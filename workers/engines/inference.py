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


def answer(
    module: nn.Module, device: torch.device, packed: Packed, temperature: float = 1.0, *, hidden: bool = False
) -> torch.Tensor:
    """What `module`, which is on `device`, answers for the tokens of a packed batch: [T]. With `hidden` the states that
    they are predicted from: [T, h]."""
    tokens, positions, predictors, targets = (
        torch.from_numpy(a.astype(np.int64)).to(device)
        for a in (packed.tokens, packed.positions, packed.predictors, packed.targets)
    )
    with torch.no_grad():
        layout, wanted = layout_of(packed, device), None if hidden else targets
        answers: torch.Tensor = module(tokens, positions, layout, predictors, wanted, temperature)[0]
    return answers


def asking(module: nn.Module, device: torch.device, temperature: float = 1.0) -> Ask:
    """`answer` of this module, as numpy."""
    return lambda packed: answer(module, device, packed, temperature).cpu().numpy()
