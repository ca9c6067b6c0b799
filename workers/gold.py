"""Gold answers of prompts, beside the samples of their group. Numpy only.

A gold answer is the last completion of its group. It was not sampled: its version is NOT_SAMPLED and its
log-probabilities are NaN, so that a number that is computed from them is NaN as well. Estimates over the policy's
samples (KL, entropy, rewards, engine against learner) are of `sampled_only`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from workers.codec import Encoded
from workers.given import batch_without_given, without_given
from workers.ragged import Ragged
from workers.types import Experience, Finish, Floats, Prompt, ScoredBatch, Text

NOT_SAMPLED = -1
"""Version of a completion that no weights sampled."""


class RowEncoder(Protocol):
    """Interface of a codec that encodes a prompt with its completions."""

    def encode_row(self, prompt: Text, completions: Sequence[Text], columns: Mapping[str, Any]) -> Encoded: ...


def gold_tokens(codec: RowEncoder, prompt: Prompt, *, max_length: int) -> list[int]:
    """Encode the gold answer of a prompt. Empty if it has none, or one of more than `max_length` tokens.

    A chat template may render an answer so that it does not continue the generation prompt, for example without the
    `<think>` that the prompt ends with. Then it is left out as well: the policy would never answer in this form.
    """
    if prompt.gold is None:
        return []
    encoded = codec.encode_row(prompt.text, [prompt.gold], prompt.columns)
    tokens = encoded.completions[0]
    return [] if encoded.moved or len(tokens) > max_length else tokens


def with_gold(experience: Experience, gold: Sequence[Sequence[int]]) -> Experience:
    """Append its gold answer to each group.

    Args:
        gold: tokens of each prompt's gold answer: [G]; empty: it has none.
    """
    assert len(gold) == len(experience.prompts), (len(gold), len(experience.prompts))
    if not any(len(tokens) for tokens in gold):
        return experience
    ends, added = experience.group_offsets[1:], np.array([len(tokens) > 0 for tokens in gold])
    at = ends[added]  # index that each gold answer is inserted before: [n]
    answers = [tokens for tokens in gold if len(tokens)]
    token_at = np.repeat(experience.completions.offsets[at], [len(tokens) for tokens in answers])
    logprobs = experience.logprobs
    return replace(
        experience,
        completions=Ragged(
            values=np.insert(experience.completions.values, token_at, np.concatenate(answers)),
            offsets=_offsets(np.insert(experience.completions.lengths, at, [len(tokens) for tokens in answers])),
        ),
        group_offsets=_offsets(np.diff(experience.group_offsets) + added),
        logprobs=None if logprobs is None else np.insert(logprobs, token_at, np.float32(np.nan)),
        versions=np.insert(experience.versions, at, NOT_SAMPLED),
        finish=np.insert(experience.finish, at, Finish.stop),
    )


def is_gold(experience: Experience) -> NDArray[np.bool_]:
    """Return the completions that are gold answers: [N]."""
    gold: NDArray[np.bool_] = experience.versions == NOT_SAMPLED
    return gold


def sampled_only(experience: Experience) -> Experience:
    """Return the experience without gold answers and given pairs."""
    experience = without_given(experience)
    gold = is_gold(experience)
    if not gold.any():
        return experience
    kept = np.flatnonzero(~gold)
    rewards, logprobs = experience.rewards, experience.logprobs
    return replace(
        experience,
        completions=experience.completions.take(kept),
        group_offsets=_offsets(np.bincount(experience.group_of[kept], minlength=len(experience.prompts))),
        logprobs=None if logprobs is None else logprobs[experience.completions.positions(kept)],
        versions=experience.versions[kept],
        finish=experience.finish[kept],
        rewards=None if rewards is None else rewards[kept],
    )


def sampled_batch(scored: ScoredBatch) -> ScoredBatch:
    """Return the scored batch without gold answers and given pairs."""
    scored = batch_without_given(scored)
    gold = is_gold(scored.experience)
    if not gold.any():
        return scored
    kept = np.flatnonzero(~gold)
    tokens = scored.experience.completions.positions(kept)

    def some(values: Floats | None, which: NDArray[np.int64]) -> Floats | None:
        return None if values is None else values[which]

    return replace(
        scored,
        experience=sampled_only(scored.experience),
        rewards=some(scored.rewards, kept),
        raw_rewards=some(scored.raw_rewards, kept),
        by_scorer=scored.by_scorer and {name: values[kept] for name, values in scored.by_scorer.items()},
        reference_logprobs=some(scored.reference_logprobs, tokens),
        values=some(scored.values, tokens),
        reference_hidden=None if scored.reference_hidden is None else scored.reference_hidden.of(tokens),
        learner_logprobs=some(scored.learner_logprobs, tokens),
    )


def _offsets(lengths: NDArray[np.int64]) -> NDArray[np.int64]:
    return np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
