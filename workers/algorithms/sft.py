"""Supervised fine-tuning: negative log-likelihood of demonstrations.

    L = mean over the update's completion tokens of −log π(y_t | x, y_<t)

Prompt tokens carry no loss, and a long demonstration weighs more than a short one. What is minimised is
KL(p‖π), where p is the distribution that the demonstrations were drawn from.
"""

from __future__ import annotations

import numpy as np
from torch import Tensor

from workers.algorithms.base import Algorithm, MicroBatch, Stats
from workers.algorithms.ops import per_token, share
from workers.config import SftConfig
from workers.needs import NEEDS
from workers.types import Metrics, ScoredBatch, TrainBatch


def prepare(scored: ScoredBatch, config: SftConfig) -> tuple[TrainBatch, Metrics]:
    """One demonstration per row: the first, that is the best, completion of each prompt."""
    experience = scored.experience
    assert np.diff(experience.group_offsets).all(), "a prompt without a completion teaches nothing"
    first = experience.group_offsets[:-1]
    batch = TrainBatch(
        prompts=experience.prompt_tokens,
        completions=experience.completions.take(first),
        row_offsets=np.arange(len(first) + 1),
        sources=first,
    )
    learned = int(batch.prompts.lengths.sum() + batch.completions.lengths.sum())
    return batch, {"num_tokens": float(learned)}


def loss(logprobs: Tensor, batch: MicroBatch, config: SftConfig) -> tuple[Tensor, Stats]:
    """Negative log-likelihood per token. `logprobs`: [T]."""
    losses = -per_token(batch, logprobs)
    tokens = batch.totals.tokens
    return losses.sum() / tokens, {"loss": share(losses, tokens)}


SFT = Algorithm(needs=NEEDS["sft"], prepare=prepare, loss=loss)
