"""Kahneman–Tversky optimisation (arXiv 2402.01306): from single completions that are good or bad, no pairs.

With ρ = log π(y|x) − log π_ref(y|x) and z = max(0, mean of ρ over mismatched completions of the update):

    desirable     L(y) = desirable_weight · (1 − σ(β (ρ − z)))
    undesirable   L(y) = undesirable_weight · (1 − σ(β (z − ρ)))

and L is the mean over the update's completions. A mismatched completion is that of the row
before: in `baseline`, which the learner measures before every update. z passes no gradient. At π = π_ref a
completion costs half its weight.

What is optimised. Not a likelihood: the cost is a straight line in σ(β (ρ − z)), so where a completion is
desirable with probability q, all else equal, it pays to raise π(y) as long as desirable_weight · q >
undesirable_weight · (1 − q), and to lower it otherwise, without end. There is no interior optimum such as π_ref
exp(r/β), and noise is settled by majority; what stops is the gradient, which is gone where |β (ρ − z)| is large.
The weights stand for the loss aversion of prospect theory: keep desirable_weight · n_desirable to
undesirable_weight · n_undesirable between 1 and 4/3.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from workers.algorithms.base import Algorithm, MicroBatch, Stats
from workers.algorithms.ops import completion_sums, per_token, share
from workers.config import KtoConfig
from workers.needs import NEEDS
from workers.types import Metrics, ScoredBatch, TrainBatch


def prepare(scored: ScoredBatch, config: KtoConfig) -> tuple[TrainBatch, Metrics]:
    """A completion per row. Of each group the first is the row's own, the second the mismatched one of `baseline`.

    A completion is desirable when its score is above 0.
    """
    experience, rewards = scored.experience, scored.rewards
    assert rewards is not None
    assert (np.diff(experience.group_offsets) >= 2).all(), "a row comes with a mismatched completion"
    own = experience.group_offsets[:-1]
    labels = (rewards[own] > 0).astype(np.float32)
    batch = replace(_single(scored, own), labels=labels, baseline=_single(scored, own + 1))
    learned = int(batch.prompts.lengths.sum() + batch.completions.lengths.sum())
    return batch, {"num_tokens": float(learned), "data/desirable": float(labels.mean())}


def loss(logprobs: Tensor, batch: MicroBatch, config: KtoConfig) -> tuple[Tensor, Stats]:
    """The value lost against the baseline z, averaged over the update's completions. `logprobs`: [T].

    Figures of one kind of completion are means over that kind, left out where the update has none.
    """
    assert batch.labels is not None, "the batch lacks labels"
    assert batch.totals.baseline is not None, "the learner has not measured the baseline"
    logps = completion_sums(per_token(batch, logprobs), batch)
    rewards = config.beta * completion_sums(logprobs - per_token(batch, batch.reference_logprobs), batch)
    z = max(0.0, batch.totals.baseline)
    is_desirable = batch.labels > 0
    gains = torch.where(is_desirable, rewards - config.beta * z, config.beta * z - rewards)
    weights = torch.where(is_desirable, config.desirable_weight, config.undesirable_weight)
    losses = weights * torch.sigmoid(-gains)
    rows = batch.totals.rows
    stats = {"loss": share(losses, rows), "kl": share(torch.full_like(losses, z), rows)}
    sides = {
        "chosen": (is_desirable, batch.totals.desirable),
        "rejected": (~is_desirable, rows - batch.totals.desirable),
    }
    for side, (picked, count) in sides.items():
        if count:
            stats[f"rewards/{side}"] = share(rewards * picked, count)
            stats[f"logps/{side}"] = share(logps * picked, count)
    if all(count for _, count in sides.values()):
        stats["rewards/margins"] = stats["rewards/chosen"] - stats["rewards/rejected"]
    return losses.sum() / rows, stats


def _single(scored: ScoredBatch, picked: NDArray[np.int64]) -> TrainBatch:
    """One completion per group: `picked` [R] of the experience."""
    experience, reference = scored.experience, scored.reference_logprobs
    assert reference is not None
    return TrainBatch(
        prompts=experience.prompt_tokens,
        completions=experience.completions.take(picked),
        row_offsets=np.arange(len(picked) + 1),
        reference_logprobs=reference[experience.completions.positions(picked)],
        sources=picked,
    )


KTO = Algorithm(needs=NEEDS["kto"], prepare=prepare, loss=loss)
