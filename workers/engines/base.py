"""Interfaces of the engines: training engines for learners, samplers for rollouts. Tests implement them as fakes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from pathlib import Path

    import torch
    from torch import Tensor

    from workers.packing import Packed
    from workers.types import Finish, Floats, Ints
    from workers.weights import Manifest


class ModelError(Exception):
    """A model or tokenizer cannot be used as configured. The message names it and the fix."""


class EngineError(Exception):
    """The engine refused a call or failed in it."""


class VersionMismatch(EngineError):
    """The process holds other weights than the call asks for, or incomplete ones. Nothing was computed."""


class TrainingEngine(Protocol):
    """One rank of a model that is trained. All ranks make the same calls in the same order."""

    rank: int
    world_size: int
    device: torch.device
    apart: bool  # the model reads each completion in a row of its own

    def forward(
        self, packed: Packed, temperature: float = 1.0, reference_hidden: Tensor | None = None
    ) -> tuple[Tensor, Tensor | None]:
        """Compute outputs [T] and entropies [T] of the target tokens, with gradient.

        Outputs are log-probabilities, or values or scores (then entropies are None). Given `reference_hidden` [T, h],
        the last hidden states of another model, outputs are divergences from the distributions of that model, whose
        output layer the engine holds.
        """
        ...

    def infer(self, packed: Packed, temperature: float = 1.0, *, adapted: bool = True) -> Tensor:
        """Compute the same outputs [T] without gradient. If not `adapted`, with the adapters disabled."""
        ...

    def backward(self, loss: Tensor, *, last: bool) -> None:
        """Accumulate the gradient of `loss`. `last` marks the last micro-batch of an update."""
        ...

    def update(self, learning_rate: float) -> float:
        """Make one optimiser update from the gradients summed over ranks. Return their norm before clipping."""
        ...

    def sum(self, value: float) -> float:
        """Return the sum of `value` over all ranks."""
        ...

    def reset_optimizer(self) -> None:
        """Reset the optimiser state to zero."""
        ...

    def reseed(self, seed: int) -> None:
        """Seed the random generator of this rank (dropout) from `seed` and the rank."""
        ...

    def describe_weights(self) -> list[tuple[str, torch.dtype, tuple[int, ...]]]:
        """Return name, dtype and shape of every weight."""
        ...

    def weights(self) -> Iterator[tuple[str, Tensor]]:
        """Yield the full weights in the order of `describe_weights`. Every rank must iterate to the end.

        Adapters are merged into the yielded tensors, never into the model.
        """
        ...

    def adapter(self) -> Iterator[tuple[str, Tensor]]:
        """Yield the full weights of the adapters and of fully trained layers, under peft's names.

        Yields nothing without adapters. Every rank must iterate to the end.
        """
        ...

    def save(self, directory: Path, state: Mapping[str, Any]) -> Sequence[Path]:
        """Write weights, optimiser and `state` to `directory`. Return the files that this rank wrote.

        A rank writes none if it holds nothing that rank 0 does not hold.
        """
        ...

    def load(self, directory: Path, saved_ranks: int | None = None) -> Mapping[str, Any]:
        """Restore what `save` has written. Return its `state`.

        `saved_ranks`: number of ranks that wrote files; None: as the directory has them.
        """
        ...

    def close(self) -> None: ...


@dataclass(frozen=True, slots=True)
class Request:
    """One completion to sample, with its own seed."""

    tokens: Sequence[int]
    seed: int


@dataclass(frozen=True, slots=True)
class Response:
    """One sampled completion."""

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
        """Sample one completion per request. Return them in the order of the requests."""
        ...

    def receive(self, manifest: Manifest, version: int, rank_offset: int = 1) -> None:
        """Load one publication. Until a complete one has arrived, `generate` must fail."""
        ...

    def receive_adapter(self, directory: str, version: int) -> None:
        """Load the adapters of one version. Until they have arrived completely, `generate` must fail."""
        ...
