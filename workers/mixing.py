"""Pairs of earlier rounds and of a dataset that are mixed into a round, as given pairs. Numpy, and pyarrow for files.

    rounds/N/groups.parquet ──paired as in their round──► pairs ──drawn──┐
                                                                         ├──► given pairs of the round
    rows of the dataset ──encoded──► pairs ──────────────────────────────┘

The pairs of an earlier round are made of its stored groups again: they are the same ones, and their tokens come back
exactly. A text that is encoded again may have other tokens. The draw depends on the seed and on the files alone.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from workers import progress
from workers.algorithms.pairs import Pairs, pairs_of
from workers.config import PairsConfig
from workers.given import GIVEN
from workers.gold import sampled_batch
from workers.types import Example, Experience, Prompt, ScoredBatch, merge


@dataclass(frozen=True, kw_only=True, slots=True)
class Mix:
    """Pairs that are mixed into a round.

    Example: half as many pairs of the first round as this one has prompts, and no dataset:
    `Mix(rounds={1: "runs/a/rounds/1"}, num_earlier=4096, examples=(), pairs=…, seed=7, chunk=12)`.
    """

    rounds: Mapping[int, str]  # directories of earlier rounds, by number from 1
    num_earlier: int  # pairs drawn from those of all these rounds, at most
    examples: Sequence[Example]  # rows of the dataset, all of which are used
    pairs: PairsConfig
    seed: int
    chunk: int  # number of the chunk within its step


def mixed(mix: Mix, encoded: Experience) -> Experience:
    """Return the given pairs of a round.

    Args:
        encoded: the dataset's rows with their tokens.

    Raises:
        GroupsError: a file does not hold the scored groups of a round.
    """
    earlier = [_of_round(number, Path(path), mix.pairs) for number, path in mix.rounds.items()]
    offline = _of_dataset(encoded, mix)
    pairs = merge([*earlier, offline])
    count = sum(len(part.prompts) for part in earlier)
    drawn = draw(count, mix.num_earlier, mix.seed)
    picked = np.concatenate([drawn, np.arange(count, len(pairs.prompts))])
    return replace(_take(pairs, picked), chunk=mix.chunk)


def draw(count: int, limit: int, seed: int) -> NDArray[np.int64]:
    """Return at most `limit` of the numbers below `count`, rising, drawn without replacement.

    The result does not depend on the version of numpy.
    """
    lots = np.random.Philox(np.random.SeedSequence(seed)).random_raw(count)
    return np.sort(np.argsort(lots, kind="stable")[:limit]).astype(np.int64)


def _of_round(number: int, directory: Path, config: PairsConfig) -> Experience:
    """Return the pairs of an earlier round. Their prompts are named `rounds/N/ID`."""
    # Imported here: the driver imports this module for Mix alone, and reads no parquet.
    from workers.files import mirror
    from workers.files.groups_file import GROUPS, read_groups

    mirror.fetch_file(directory / GROUPS, wait_s=mirror.WAIT_S)
    scored, _ = read_groups(directory / GROUPS)
    if config.gold == "never":
        scored = sampled_batch(scored)
    pairs, _ = pairs_of(scored, config)
    progress.report()
    return _given(scored, pairs, prefix=f"rounds/{number}/")


def _of_dataset(encoded: Experience, mix: Mix) -> Experience:
    if not encoded.prompts:
        none = np.zeros(0, np.float32)
        return replace(encoded, rewards=none, logprobs=none)
    scored = ScoredBatch(
        experience=encoded, rewards=encoded.rewards, reference_logprobs=None, values=None, seed=mix.seed
    )
    pairs, _ = pairs_of(scored, mix.pairs.for_dataset())
    given = _given(scored, pairs)
    return replace(given, num_dropped=encoded.num_dropped, num_truncated=encoded.num_truncated)


def _given(scored: ScoredBatch, pairs: Pairs, *, prefix: str = "") -> Experience:
    """Return pairs as groups of two, chosen first, with their rewards."""
    experience = scored.experience
    assert scored.rewards is not None
    picked = np.stack([pairs.chosen, pairs.rejected], axis=1).reshape(-1).astype(np.int64)
    groups = experience.group_of[picked[::2]]
    completions = experience.completions.take(picked)
    return Experience(
        prompts=tuple(_named(experience.prompts[group], prefix) for group in groups),
        prompt_tokens=experience.prompt_tokens.take(groups),
        completions=completions,
        group_offsets=2 * np.arange(len(pairs) + 1),
        logprobs=np.full(len(completions.values), np.nan, np.float32),
        versions=np.full(len(picked), GIVEN, np.int32),
        finish=experience.finish[picked],
        rewards=scored.rewards[picked],
    )


def _named(prompt: Prompt, prefix: str) -> Prompt:
    return replace(prompt, id=f"{prefix}{prompt.id}") if prefix else prompt


def _take(pairs: Experience, picked: NDArray[np.int64]) -> Experience:
    """Return the pairs `picked`, groups of two."""
    completions = (2 * picked[:, None] + np.arange(2)).reshape(-1)
    kept = pairs.completions.take(completions)
    assert pairs.rewards is not None
    return replace(
        pairs,
        prompts=tuple(pairs.prompts[group] for group in picked),
        prompt_tokens=pairs.prompt_tokens.take(picked),
        completions=kept,
        group_offsets=2 * np.arange(len(picked) + 1),
        logprobs=np.full(len(kept.values), np.nan, np.float32),
        versions=pairs.versions[completions],
        finish=pairs.finish[completions],
        rewards=pairs.rewards[completions],
    )
