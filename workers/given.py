"""Groups of given pairs beside the sampled groups of a round. Numpy only.

A given group has two completions, chosen first, which the policy has not sampled now: a pair of an earlier round, or of
a dataset. The version of both is GIVEN, their log-probabilities are NaN, and their rewards come with them. Given groups
follow the sampled ones, so that the indices of samples are the same with and without them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from workers.types import Experience, Floats, ScoredBatch, Scores

GIVEN = -2
"""Version of the completions of a given pair."""


def is_given(experience: Experience) -> NDArray[np.bool_]:
    """Return the completions of given pairs: [N]."""
    given: NDArray[np.bool_] = experience.versions == GIVEN
    return given


def without_given(experience: Experience) -> Experience:
    """Return the experience without the groups of given pairs."""
    given = is_given(experience)
    if not given.any():
        return experience
    count = len(given) - int(given.sum())  # completions that are left
    assert not given[:count].any(), "given pairs follow the samples"
    completions, groups = np.arange(count), np.arange(int(np.searchsorted(experience.group_offsets, count)))
    rewards, logprobs = experience.rewards, experience.logprobs
    kept = experience.completions.take(completions)
    return replace(
        experience,
        prompts=experience.prompts[: len(groups)],
        prompt_tokens=experience.prompt_tokens.take(groups),
        completions=kept,
        group_offsets=experience.group_offsets[: len(groups) + 1],
        logprobs=None if logprobs is None else logprobs[: len(kept.values)],
        versions=experience.versions[:count],
        finish=experience.finish[:count],
        rewards=None if rewards is None else rewards[:count],
    )


def batch_without_given(scored: ScoredBatch) -> ScoredBatch:
    """Return the scored batch without the groups of given pairs."""
    experience = without_given(scored.experience)
    if experience is scored.experience:
        return scored
    count, tokens = len(experience.completions), len(experience.completions.values)

    def first(values: Floats | None, size: int) -> Floats | None:
        return None if values is None else values[:size]

    hidden = scored.reference_hidden
    return replace(
        scored,
        experience=experience,
        rewards=first(scored.rewards, count),
        raw_rewards=first(scored.raw_rewards, count),
        by_scorer=scored.by_scorer and {name: values[:count] for name, values in scored.by_scorer.items()},
        reference_logprobs=first(scored.reference_logprobs, tokens),
        values=first(scored.values, tokens),
        reference_hidden=None if hidden is None else hidden.of(np.arange(tokens)),
        learner_logprobs=first(scored.learner_logprobs, tokens),
    )


def given_scores(part: Experience, sampled: Scores) -> Scores:
    """Return the scores of given pairs, beside those of samples: their rewards, and NaN for each scorer."""
    assert part.rewards is not None
    none = np.full(len(part.rewards), np.nan, np.float32)
    return Scores(
        rewards=part.rewards,
        by_scorer=dict.fromkeys(sampled.by_scorer, none),
        chunk=part.chunk,
        weights=sampled.weights,
        normalized=None if sampled.normalized is None else part.rewards,
    )


def scores_of(parts: Sequence[Experience], sampled: Sequence[Scores]) -> list[Scores]:
    """Return the scores of all parts of a step: those of the samples, then those of given pairs.

    Args:
        parts: parts of the step's experience, given pairs last.
        sampled: scores of the samples.
    """
    given = [part for part in parts if len(part.completions) and is_given(part).all()]
    return [*sampled, *(given_scores(part, sampled[0]) for part in given)]
