"""Kahneman–Tversky optimisation (arXiv 2402.01306) on single completions that are labelled good or bad.

With ρ = log π(y|x) − log π_ref(y|x) and z = max(0, mean of ρ over mismatched completions of the update):

    desirable     L(y) = desirable_weight · (1 − σ(β (ρ − z)))
    undesirable   L(y) = undesirable_weight · (1 − σ(β (z − ρ)))

and L is the mean over the update's completions. The mismatched completion of a row is that of the row before. They are
the batch's `baseline`, on which the learner measures z before every update. z has no gradient. At π = π_ref the loss of
a completion is half its weight.

Optimum. The objective is not a likelihood: the loss is linear in σ(β (ρ − z)). For a completion that is desirable with
probability q, all else equal, raising π(y) lowers the loss as long as desirable_weight · q > undesirable_weight ·
(1 − q), and lowering π(y) does otherwise. There is no interior optimum such as π_ref exp(r/β), and noisy labels are
decided by majority. Training stops because the gradient vanishes where |β (ρ − z)| is large. The weights represent the
loss aversion of prospect theory: keep the ratio of desirable_weight · n_desirable to undesirable_weight · n_undesirable
between 1 and 4/3.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from workers.algorithms.base import Algorithm, MicroBatch, Stats
from workers.algorithms.ops import by_objective, completion_sums, per_token, share
from workers.config import KtoConfig
from workers.stats import Metrics
from workers.types import ScoredBatch, TrainBatch


def prepare(scored: ScoredBatch, config: KtoConfig) -> tuple[TrainBatch, Metrics]:
    """Make one row of each group's first completion. Its second completion is the mismatched one, of `baseline`.

    A completion is desirable if its score is above 0.
    """
    experience, rewards = scored.experience, scored.rewards
    assert rewards is not None
    assert (np.diff(experience.group_offsets) >= 2).all(), "a row comes with a mismatched completion"
    own = experience.group_offsets[:-1]
    labels = (rewards[own] > 0).astype(np.float32)
    batch = replace(_single(scored, own), labels=labels, baseline=_single(scored, own + 1))
    num_tokens = int(batch.prompts.lengths.sum() + batch.completions.lengths.sum())
    return batch, {"num_tokens": float(num_tokens), "data/desirable": float(labels.mean())}


def loss(logprobs: Tensor, batch: MicroBatch, config: KtoConfig) -> tuple[Tensor, Stats]:
    """Compute the KTO loss relative to the baseline z, averaged over the update's completions. `logprobs`: [T].

    Stats of desirable (chosen) and of undesirable (rejected) completions are means over that kind, and are left out
    where the update has none.
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
    stats |= by_objective(batch, loss=losses)
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
    """Return a batch with one completion per row: the completions `picked` [R] of the experience."""
    experience, reference = scored.experience, scored.reference_logprobs
    assert reference is not None
    return TrainBatch(
        prompts=experience.prompt_tokens,
        completions=experience.completions.take(picked),
        row_offsets=np.arange(len(picked) + 1),
        reference_logprobs=reference[experience.completions.positions(picked)],
        sources=picked,
    )


ALGORITHM = Algorithm(prepare=prepare, loss=loss)
