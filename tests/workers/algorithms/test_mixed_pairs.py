"""Given pairs beside a round's own: they are trained on, and leave its own pairs and the metrics of samples alone."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from fakes import experience

from workers.algorithms.dpo import prepare
from workers.config import DpoConfig, PairsConfig
from workers.given import GIVEN, batch_without_given, scores_of, without_given
from workers.gold import NOT_SAMPLED, sampled_batch, sampled_only, with_gold
from workers.step_inputs import scored_batch
from workers.types import Experience, Scores, TokenShard, TrainBatch, merge

LONG = list(range(200, 280))
GROUPS = [([7], [[1, 1], [2], [3], [4]]), ([8], [[5], LONG])]
REWARDS = np.float32([0.9, 0.1, 0.5, 0.4, 0.2, 0.8])
Pair = tuple[Sequence[int], Sequence[int], Sequence[int]]  # tokens of prompt, chosen, rejected


def sampled() -> Experience:
    count = sum(len(tokens) for _, group in GROUPS for tokens in group)
    return experience(GROUPS, logprobs=[-1.0] * count, version=2)


def given(pairs: Sequence[Pair], rewards: Sequence[float] | None = None, chunk: int = 1) -> Experience:
    count = sum(len(chosen) + len(rejected) for _, chosen, rejected in pairs)
    return experience(
        [(prompt, [chosen, rejected]) for prompt, chosen, rejected in pairs],
        logprobs=[np.nan] * count,
        rewards=rewards or [1.0, 0.0] * len(pairs),
        version=GIVEN,
        chunk=chunk,
    )


def prepared(parts: Sequence[Experience], **settings: Any) -> tuple[TrainBatch, dict[str, float]]:
    """Prepare what a learner is given: the samples are scored, and every token has a reference log-probability."""
    shares = [
        TokenShard(
            completions=np.arange(len(p.completions)),
            values=np.full(len(p.completions.values), -2, np.float32),
            chunk=p.chunk,
        )
        for p in parts
    ]
    scores = [Scores(rewards=REWARDS, by_scorer={"math": REWARDS, "judge": REWARDS[::-1]})]
    scored = scored_batch(parts, scores, shares, None, None, seed=3)
    return prepare(scored, DpoConfig(type="dpo", **settings))


def rows(batch: TrainBatch) -> list[tuple[list[int], list[int], list[int]]]:
    both = [tokens.tolist() for tokens in batch.completions]
    return list(zip((p.tolist() for p in batch.prompts), both[::2], both[1::2], strict=True))


OTHERS: list[Pair] = [([7], [9], [2]), ([60], [1], [2])]


def test_given_pairs_follow_the_round_s_own_with_their_margins() -> None:
    alone, facts = prepared([sampled()])
    batch, with_given = prepared([sampled(), given(OTHERS, [0.5, 0.25, 1.0, -1.0])])
    assert rows(batch) == [*rows(alone), *OTHERS]
    assert batch.margins is not None
    assert batch.margins.tolist() == pytest.approx([0.8, 0.6, 0.25, 2.0])
    assert batch.reference_logprobs is not None
    assert (batch.reference_logprobs == -2).all()
    assert with_given == facts | {"pairs/mixed": 2, "pairs/mixed_duplicates": 0}


def test_repeats_of_own_and_of_given_pairs_are_left_out() -> None:
    nearly = [*LONG[:-1], 999]
    repeated: list[Pair] = [([7], [1, 1], [2]), ([8], nearly, [5]), *OTHERS, OTHERS[1], ([61], [1], [2])]
    batch, facts = prepared([sampled(), given(repeated)])
    assert rows(batch)[2:] == [*OTHERS, ([61], [1], [2])]
    assert (facts["pairs/mixed"], facts["pairs/mixed_duplicates"]) == (3, 3)
    kept, facts = prepared([sampled(), given(repeated)], pairs=PairsConfig(duplicates="keep"))
    assert rows(kept)[2:] == repeated
    assert facts["pairs/mixed_duplicates"] == 0


def test_margins_of_given_pairs_make_soft_labels_too() -> None:
    batch, _ = prepared([sampled(), given(OTHERS[:1], [2.0, 0.0])], soft_labels="margin", label_temperature=2.0)
    assert batch.soft_labels is not None
    assert batch.soft_labels[-2:].tolist() == pytest.approx([0.731, 0.269], abs=1e-3)


def test_a_limit_on_pairs_and_on_agreement_is_for_the_round_s_own() -> None:
    batch, facts = prepared([sampled(), given(OTHERS)], pairs=PairsConfig(max_pairs=1, min_agreement=0.5))
    assert len(rows(batch)) == 1 + 2
    assert (facts["pairs/count"], facts["pairs/capped"]) == (1, 1)


def test_a_round_may_have_no_pairs_but_given_ones() -> None:
    batch, facts = prepared([sampled(), given(OTHERS)], pairs=PairsConfig(min_margin=5.0))
    assert rows(batch) == OTHERS
    assert (facts["pairs/count"], facts["pairs/saturated_groups"], facts["pairs/mixed"]) == (0, 1, 2)


def test_samples_come_back_without_given_pairs() -> None:
    batch = with_gold(sampled(), [[9, 9], []])
    whole = merge([batch, given(OTHERS)])
    for name in ("group_offsets", "logprobs", "versions", "finish"):
        assert getattr(without_given(whole), name).tolist() == pytest.approx(getattr(batch, name), nan_ok=True)
    assert without_given(batch) is batch
    back = sampled_only(whole)
    assert [tokens.tolist() for tokens in back.completions] == [t.tolist() for t in sampled().completions]
    assert len(back.prompts) == len(back.prompt_tokens) == 2
    assert NOT_SAMPLED not in back.versions


def test_scores_of_samples_come_back_without_given_pairs() -> None:
    parts = [sampled(), given(OTHERS)]
    normalized = REWARDS * 2
    scores = [Scores(rewards=REWARDS, by_scorer={"math": REWARDS}, normalized=normalized)]
    scored = scored_batch(parts, scores, None, None, None, seed=0)
    assert scored.rewards is not None
    assert scored.rewards[6:].tolist() == [1, 0, 1, 0]
    assert scored.by_scorer is not None
    assert np.isnan(scored.by_scorer["math"][6:]).all()
    back = sampled_batch(scored)
    assert back.rewards is not None
    assert back.raw_rewards is not None
    assert (back.rewards == normalized).all()
    assert (back.raw_rewards == REWARDS).all()
    assert back.by_scorer is not None
    assert (back.by_scorer["math"] == REWARDS).all()
    assert batch_without_given(back) is back
    assert scores_of([sampled(), given([])], scores) == scores
