"""Supervised fine-tuning: negative log-likelihood of demonstrations.

    L = mean over the update's completion tokens of −log π(y_t | x, y_<t)

Prompt tokens have no loss, and a long demonstration has more weight than a short one. The objective minimises KL(p‖π),
where p is the distribution that the demonstrations were drawn from.
"""

from __future__ import annotations

import numpy as np
from torch import Tensor

from workers.algorithms.base import Algorithm, MicroBatch, Stats
from workers.algorithms.ops import per_token, share, tokens_by_objective
from workers.config import SftConfig
from workers.stats import Metrics
from workers.types import ScoredBatch, TrainBatch


def prepare(scored: ScoredBatch, config: SftConfig) -> tuple[TrainBatch, Metrics]:
    """Make one row of each prompt's first completion, which is its best."""
    experience = scored.experience
    assert np.diff(experience.group_offsets).all(), "every prompt needs a completion"
    first = experience.group_offsets[:-1]
    batch = TrainBatch(
        prompts=experience.prompt_tokens,
        completions=experience.completions.take(first),
        row_offsets=np.arange(len(first) + 1),
        sources=first,
    )
    num_tokens = int(batch.prompts.lengths.sum() + batch.completions.lengths.sum())
    return batch, {"num_tokens": float(num_tokens)}


def loss(logprobs: Tensor, batch: MicroBatch, config: SftConfig) -> tuple[Tensor, Stats]:
    """Compute the negative log-likelihood per token. `logprobs`: [T]."""
    losses = -per_token(batch, logprobs)
    tokens = batch.totals.tokens
    return losses.sum() / tokens, {"loss": share(losses, tokens), **tokens_by_objective(batch, loss=losses)}


ALGORITHM = Algorithm(prepare=prepare, loss=loss)
