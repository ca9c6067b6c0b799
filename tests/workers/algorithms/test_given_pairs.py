"""Groups of two, paired all at once, give the pairs of the general way."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from workers.algorithms.pairs import are_given, make_pairs
from workers.config import PairsConfig
from workers.ragged import Ragged
from workers.types import Experience, Finish, Prompt


def groups(sizes: list[int], rng: np.random.Generator) -> Experience:
    """Return groups of completions of at most 2 tokens out of 2, so that many are equal; a third is truncated."""
    completions = [rng.integers(0, 2, rng.integers(1, 3)).tolist() for _ in range(sum(sizes))]
    return Experience(
        prompts=(Prompt(id="", text=""),) * len(sizes),
        prompt_tokens=Ragged.of([[1]] * len(sizes)),
        completions=Ragged.of(completions),
        group_offsets=np.cumsum([0, *sizes]),
        logprobs=None,
        versions=np.zeros(sum(sizes), np.int32),
        finish=np.where(rng.random(sum(sizes)) < 1 / 3, Finish.length, Finish.stop).astype(np.int32),
    )


@pytest.mark.parametrize("is_sampled", [False, True])
@pytest.mark.parametrize("settings", [{}, {"truncated_chosen": True}, {"min_margin": 1.0}, {"selection": "all"}])
def test_both_ways_agree(settings: dict[str, Any], is_sampled: bool) -> None:
    config = PairsConfig.model_validate({"duplicates": "keep", **settings})
    experience = groups([2] * 200 + [1], np.random.default_rng(0))
    if is_sampled:
        experience = replace(experience, logprobs=np.zeros(len(experience.completions.values), np.float32))
    scores = np.random.default_rng(1).integers(0, 4, len(experience.completions)).astype(np.float32)
    general = make_pairs(experience, scores, config, seed=0)  # the last group makes it the general way
    given = replace(
        experience,
        prompts=experience.prompts[:-1],
        prompt_tokens=experience.prompt_tokens.take(np.arange(200)),
        completions=experience.completions.take(np.arange(400)),
        group_offsets=experience.group_offsets[:-1],
        versions=experience.versions[:-1],
        finish=experience.finish[:-1],
    )
    assert are_given(given, config)
    assert not are_given(experience, config)
    at_once = make_pairs(given, scores[:-1], config, seed=0)
    assert 0 < len(at_once) < 200
    for name in ("chosen", "rejected", "margins"):
        assert getattr(at_once, name).tolist() == getattr(general, name).tolist()
    are_equal = [
        experience.completions[i].tolist() == experience.completions[j].tolist()
        for i, j in zip(at_once.chosen, at_once.rejected, strict=True)
    ]
    assert any(are_equal) != is_sampled
