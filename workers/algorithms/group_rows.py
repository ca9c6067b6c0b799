"""Sampled groups as the rows of a batch. Pure numpy."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from workers.types import Floats, ScoredBatch, TrainBatch


def group_rows(
    scored: ScoredBatch, advantages: Floats, weights: Floats | None, kept: NDArray[np.int64] | None = None
) -> TrainBatch:
    """One group per row, so that its prompt is computed once. `advantages` and importance `weights` are those of all
    tokens: [T].

    `kept` [n], rising: the completions to learn from; None: all. A group of which none is kept has no row.
    """
    experience, reference = scored.experience, scored.reference_logprobs
    assert advantages.shape == experience.completions.values.shape, advantages.shape
    kept = np.arange(len(experience.completions)) if kept is None else kept
    sizes = np.bincount(experience.group_of[kept], minlength=len(experience.prompts))
    rows = np.flatnonzero(sizes)
    tokens = experience.completions.positions(kept)
    return TrainBatch(
        prompts=experience.prompt_tokens.take(rows),
        completions=experience.completions.take(kept),
        row_offsets=np.concatenate([[0], np.cumsum(sizes[rows])]),
        old_logprobs=scored.old_logprobs[tokens],
        reference_logprobs=None if reference is None else reference[tokens],
        advantages=advantages[tokens],
        importance_weights=None if weights is None else weights[tokens],
        sources=kept,
    )
