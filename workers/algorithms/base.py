"""Interface of an algorithm: a record of `prepare` and `loss`.

    ScoredBatch ──prepare──► TrainBatch ──(packed, split over ranks)──► MicroBatch ──loss──► scalar

`prepare` uses numpy and sees the whole step. `loss` uses torch and sees one micro-batch, with the denominators of the
whole optimiser update, so that losses and gradients add up over micro-batches and ranks.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Self, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from workers.packing import members
from workers.ragged import TokenVectors
from workers.stats import Metrics, Totals
from workers.types import ScoredBatch, TrainBatch


@dataclass(frozen=True, kw_only=True, slots=True)
class MicroBatch:
    """R rows of a TrainBatch as tensors: n completions with T tokens in total. Unused fields are None."""

    completion_of: Tensor  # [T] int64: completion that a token belongs to
    row_of: Tensor  # [n] int64: row of this micro-batch that a completion belongs to
    lengths: Tensor  # [n] int64: tokens of each completion
    num_rows: int
    totals: Totals  # denominators of the whole optimiser update, over all micro-batches and ranks
    old_logprobs: Tensor | None = None  # [T]
    reference_logprobs: Tensor | None = None  # [T]
    reference_hidden: Tensor | None = None  # [T, h] the teacher's states: input of the engine, not of a loss
    advantages: Tensor | None = None  # [T]
    old_values: Tensor | None = None  # [T]
    returns: Tensor | None = None  # [T]
    margins: Tensor | None = None  # [R]
    soft_labels: Tensor | None = None  # [n] probability that it is preferred; None: 1 if chosen, 0 if rejected
    labels: Tensor | None = None  # [R] 1: desirable, 0: undesirable
    importance_weights: Tensor | None = None  # [T] weight of each token's loss; None: 1
    objectives: Tensor | None = None  # [R] index into totals.objectives; −1: none; None: no row has an objective

    @classmethod
    def of(cls, batch: TrainBatch, rows: NDArray[np.int64], totals: Totals, device: torch.device | str = "cpu") -> Self:
        """Return the given rows of `batch` as tensors on `device`, in that order."""
        sizes = np.diff(batch.row_offsets)[rows]
        completions = members(batch.row_offsets, rows)
        tokens = batch.completions.positions(completions)
        lengths = batch.completions.lengths[completions]

        def some(values: NDArray[Any] | None, which: NDArray[np.int64]) -> Tensor | None:
            return None if values is None else torch.from_numpy(values[which]).to(device)

        return cls(
            completion_of=torch.from_numpy(np.repeat(np.arange(len(lengths)), lengths)).to(device),
            row_of=torch.from_numpy(np.repeat(np.arange(len(rows)), sizes)).to(device),
            lengths=torch.from_numpy(lengths).to(device),
            num_rows=len(rows),
            totals=totals,
            old_logprobs=some(batch.old_logprobs, tokens),
            reference_logprobs=some(batch.reference_logprobs, tokens),
            reference_hidden=_vectors(batch.reference_hidden, tokens, device),
            advantages=some(batch.advantages, tokens),
            old_values=some(batch.old_values, tokens),
            returns=some(batch.returns, tokens),
            margins=some(batch.margins, rows),
            soft_labels=some(batch.soft_labels, completions),
            labels=some(batch.labels, rows),
            importance_weights=some(batch.importance_weights, tokens),
            objectives=some(batch.objectives, rows),
        )


def _vectors(vectors: TokenVectors | None, tokens: NDArray[np.int64], device: torch.device | str) -> Tensor | None:
    if vectors is None:
        return None
    taken = torch.from_numpy(vectors.take(tokens))
    return (taken.view(torch.bfloat16) if taken.dtype == torch.uint16 else taken).to(device)


def totals_of(batch: TrainBatch, rows: NDArray[np.int64]) -> Totals:
    """Return the denominators of an update that trains on the given rows."""
    completions = batch.row_offsets[rows], batch.row_offsets[rows + 1]
    tokens = batch.completions.offsets[completions[1]] - batch.completions.offsets[completions[0]]
    return Totals(
        rows=len(rows),
        completions=int((completions[1] - completions[0]).sum()),
        tokens=int(tokens.sum()),
        desirable=0 if batch.labels is None else int((batch.labels[rows] > 0).sum()),
    )


Stats: TypeAlias = dict[str, Tensor]
Loss: TypeAlias = Callable[[Tensor, MicroBatch, Any], tuple[Tensor, Stats]]
"""Function (outputs [T], batch, config) -> (loss, stats). Loss and stats are divided by the totals of the update, so
that their sums over micro-batches and ranks are the values of the whole update. The outputs are divergences where the
batch has `reference_hidden`."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Control:
    """Setting that is adapted after each step. Every rank of every learner gets the same batch, so all ranks agree.

    Example: `Control(name="kl_coef", after=next_kl_coef)`.
    """

    name: str  # name of the setting, of its metric and of its entry in a checkpoint
    after: Callable[[ScoredBatch, Any], float]  # (batch, config of this step) -> value for the next step


@dataclass(frozen=True, kw_only=True, slots=True)
class Algorithm:
    """Record of a method: how it makes a batch, and its losses. A module of `workers.algorithms` defines it as
    `ALGORITHM`."""

    prepare: Callable[[ScoredBatch, Any], tuple[TrainBatch, Metrics]]
    loss: Loss  # loss of the policy, on token log-probabilities; of a reward model, on its score at each token
    critic_loss: Loss | None = None  # loss of the critic, on token values
    range_of: tuple[str, Callable[[Tensor, MicroBatch], Tensor]] | None = None
    """(name, function): the minimum and maximum over a step of the numbers that it returns are reported as min_<name>
    and max_<name>."""
    control: Control | None = None  # setting that is adapted after each step; None: all settings are constant
