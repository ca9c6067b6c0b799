"""Inputs of a learner's step: experience, scores and log-probabilities, merged over chunks and ranks."""

from __future__ import annotations

from collections.abc import Sequence

from workers.given import scores_of
from workers.gold import sampled_only
from workers.stats import Metrics
from workers.types import (
    Experience,
    Floats,
    ScoredBatch,
    Scores,
    TokenShard,
    assemble,
    assemble_vectors,
    merge,
    merge_scores,
    merge_shards,
)


def scored_batch(
    parts: Sequence[Experience],
    scores: Sequence[Scores] | None,
    reference: Sequence[TokenShard] | None,
    values: Sequence[TokenShard] | None,
    old: Sequence[TokenShard] | None,
    *,
    seed: int,
) -> ScoredBatch:
    """Merge what the gangs return for a step, parts and shares, into one batch.

    Args:
        scores: scores of the samples, without those of given pairs.
        old: see `Learner.step`.
    """
    experience = merge(parts)
    reference, values, old = (
        None if shares is None else merge_shards(shares, parts) for shares in (reference, values, old)
    )
    hidden = reference is not None and any(share.has_vectors for share in reference)
    merged = None if scores is None else merge_scores(scores_of(parts, scores))
    return ScoredBatch(
        experience=experience,
        rewards=_rewards(experience, merged),
        reference_logprobs=assemble(reference, experience.completions) if reference and not hidden else None,
        reference_hidden=assemble_vectors(reference, experience.completions) if reference and hidden else None,
        values=assemble(values, experience.completions) if values is not None else None,
        seed=seed,
        learner_logprobs=assemble(old, experience.completions) if old is not None else None,
        by_scorer=None if merged is None else merged.by_scorer,
        weights={} if merged is None else merged.weights,
        raw_rewards=None if merged is None or merged.normalized is None else merged.rewards,
    )


def _rewards(experience: Experience, scores: Scores | None) -> Floats | None:
    """Return the rewards [N] to train on."""
    if scores is None:
        return experience.rewards
    return scores.rewards if scores.normalized is None else scores.normalized


def experience_facts(experience: Experience, version: int) -> Metrics:
    """Return the metrics of a step's experience. `version`: version of the policy that the step trains."""
    facts = {
        "timing/generate": experience.seconds,
        "data/dropped": float(experience.num_dropped),
        "data/truncated": float(experience.num_truncated),
    }
    if experience.logprobs is not None and len(experience.versions):
        staleness = version - sampled_only(experience).versions  # step n trains version n of the policy
        facts |= {"staleness/mean": float(staleness.mean()), "staleness/max": float(staleness.max())}
    return facts
