"""What a learner asks of a training engine. Fakes in the tests implement the same."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from workers.packing import Packed


class TrainingEngine(Protocol):
    """One rank of a model that is trained. All ranks make the same calls in the same order."""

    rank: int
    world_size: int
    device: torch.device

    def forward(
        self, packed: Packed, temperature: float = 1.0, reference_hidden: Tensor | None = None
    ) -> tuple[Tensor, Tensor | None]:
        """For the T predicted tokens: log-probabilities and their entropy, or values, or scores, and None. With
        gradient.

        With `reference_hidden` [T, h], the last hidden states of another model: divergences from that model's
        distributions, and entropy. The engine has been given that model's output layer.
        """
        ...

    def infer(self, packed: Packed, temperature: float = 1.0, *, adapted: bool = True) -> Tensor:
        """The same outputs without gradient; not `adapted`: those of the frozen model under the adapters."""
        ...

    def backward(self, loss: Tensor, *, last: bool) -> None:
        """Add the gradient of `loss`; `last` says that this is the update's last micro-batch."""
        ...

    def update(self, learning_rate: float) -> float:
        """One optimiser update from the gradients summed over ranks; returns their norm before clipping."""
        ...

    def sum(self, value: float) -> float:
        """The sum of every rank's `value`, the same on all ranks."""
        ...

    def reset_optimizer(self) -> None: ...

    def describe_weights(self) -> list[tuple[str, torch.dtype, tuple[int, ...]]]: ...

    def weights(self) -> Iterator[tuple[str, Tensor]]:
        """Full weights one after the other, in the order of `describe_weights`. Every rank must run through it.
        Adapters are merged into what is yielded, never into the model."""
        ...

    def adapter(self) -> Iterator[tuple[str, Tensor]]:
        """Full weights of the adapters under peft's names; nothing without adapters. Every rank must run through it."""
        ...

    def save(self, directory: Path, state: Mapping[str, Any]) -> None: ...

    def load(self, directory: Path) -> Mapping[str, Any]: ...

    def close(self) -> None: ...
