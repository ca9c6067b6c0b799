"""What an algorithm is: one record of `needs`, `prepare` and `loss`.

    Evidence ──prepare──► TrainBatch ──(packed, split over ranks)──► MicroBatch ──loss──► scalar

`prepare` is numpy and sees the whole step; `loss` is torch and sees one micro-batch, with the denominators of
the whole optimiser update, so that micro-batches and ranks simply add up.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Self, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from workers.needs import Needs
from workers.packing import members
from workers.types import Metrics, ScoredBatch, TokenVectors, Totals, TrainBatch


@dataclass(frozen=True, kw_only=True, slots=True)
class MicroBatch:
    """Some rows of a TrainBatch as tensors: n completions of T tokens in all. Unused fields are None."""

    completion_of: Tensor  # [T] int64: which completion a token belongs to
    row_of: Tensor  # [n] int64: which row (of this micro-batch) a completion belongs to
    lengths: Tensor  # [n] int64
    num_rows: int
    totals: Totals  # of the whole optimiser update, over all micro-batches and ranks
    old_logprobs: Tensor | None = None  # [T]
    reference_logprobs: Tensor | None = None  # [T]
    reference_hidden: Tensor | None = None  # [T, h]: what the engine is asked with, no loss looks at it
    advantages: Tensor | None = None  # [T]
    old_values: Tensor | None = None  # [T]
    returns: Tensor | None = None  # [T]
    margins: Tensor | None = None  # [R]
    labels: Tensor | None = None  # [R] 1: desirable, 0: not
    importance_weights: Tensor | None = None  # [T] of each token's loss; None: 1

    @classmethod
    def of(cls, batch: TrainBatch, rows: NDArray[np.int64], totals: Totals, device: torch.device | str = "cpu") -> Self:
        """The rows `rows` of `batch`, in that order."""
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
            labels=some(batch.labels, rows),
            importance_weights=some(batch.importance_weights, tokens),
        )


def _vectors(vectors: TokenVectors | None, tokens: NDArray[np.int64], device: torch.device | str) -> Tensor | None:
    if vectors is None:
        return None
    taken = torch.from_numpy(vectors.take(tokens))
    return (taken.view(torch.bfloat16) if taken.dtype == torch.uint16 else taken).to(device)


def totals_of(batch: TrainBatch, rows: NDArray[np.int64]) -> Totals:
    """The denominators of an update that learns from the rows `rows`."""
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
"""(outputs [T], batch, config) -> (loss, stats). Both are already divided by the totals of the update: summed
over micro-batches and ranks they are the figure of the whole update. Outputs are divergences where the batch has
`reference_hidden`."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Control:
    """A setting that follows what was seen. Every rank of every learner gets the same evidence, so all agree.

    Example: `Control(name="kl_coef", after=next_kl_coef)`.
    """

    name: str  # the setting, also the metric's and the checkpoint's name
    after: Callable[[ScoredBatch, Any], float]  # (evidence, config of this step) -> the setting of the next step


@dataclass(frozen=True, kw_only=True, slots=True)
class Algorithm:
    """One row of the table in `workers.algorithms`."""

    needs: Needs
    prepare: Callable[[ScoredBatch, Any], tuple[TrainBatch, Metrics]]
    loss: Loss  # of the policy: outputs are token log-probabilities; of a reward model: its number at each token
    critic_loss: Loss | None = None  # of the critic: outputs are token values
    range_of: tuple[str, Callable[[Tensor, MicroBatch], Tensor]] | None = None
    """(name, numbers): the least and the greatest of a step's numbers are told as min_<name> and max_<name>."""
    control: Control | None = None  # a coefficient that a step's evidence moves; None: the settings stay as they are
