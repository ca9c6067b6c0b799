"""What a learner asks of a training engine and a rollout of a sampler. Fakes in the tests implement the same."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from workers.packing import Packed
from workers.types import Finish, Floats, Ints
from workers.weights import Manifest


class EngineError(Exception):
    """The engine refused or broke; the message says what."""


class VersionMismatch(EngineError):
    """Other weights are held than were asked for, or half of them: nothing was answered."""


class TrainingEngine(Protocol):
    """One rank of a model that is trained. All ranks make the same calls in the same order."""

    rank: int
    world_size: int
    device: torch.device
    apart: bool  # the model reads each completion in a row of its own

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

    def reseed(self, seed: int) -> None:
        """What this rank draws at random from here on (dropout) hangs on `seed` and its number alone."""
        ...

    def describe_weights(self) -> list[tuple[str, torch.dtype, tuple[int, ...]]]: ...

    def weights(self) -> Iterator[tuple[str, Tensor]]:
        """Full weights one after the other, in the order of `describe_weights`. Every rank must run through it.
        Adapters are merged into what is yielded, never into the model."""
        ...

    def adapter(self) -> Iterator[tuple[str, Tensor]]:
        """Full weights of the adapters, and of what is trained whole beside them, under peft's names; nothing without
        adapters. Every rank must run through it."""
        ...

    def save(self, directory: Path, state: Mapping[str, Any]) -> None: ...

    def load(self, directory: Path) -> Mapping[str, Any]: ...

    def close(self) -> None: ...


@dataclass(frozen=True, slots=True)
class Request:
    """One completion to be drawn, with its own seed."""

    tokens: Sequence[int]
    seed: int


@dataclass(frozen=True, slots=True)
class Response:
    tokens: Ints  # [T]
    logprobs: Floats  # [T]
    finish: Finish


class Sampler(Protocol):
    """One inference engine with weights of one version."""

    @property
    def version(self) -> int: ...

    def generate(
        self,
        requests: Sequence[Request],
        *,
        max_tokens: int,
        temperature: float,
        top_p: float,
        top_k: int,
        stop_token_ids: Sequence[int],
        ignore_eos: bool,
    ) -> list[Response]:
        """Answers in the order of the requests."""
        ...

    def receive(self, manifest: Manifest, version: int, rank_offset: int = 1) -> None:
        """Take one publication; must not generate before a complete one has arrived."""
        ...

    def receive_adapter(self, directory: str, version: int) -> None:
        """Take the adapters of one version; must not generate before they have arrived whole."""
        ...
