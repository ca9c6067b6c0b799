"""Given pairs that are mixed into the pairs of a round. Pure numpy.

A given pair was chosen when it was made: the settings of pairs select nothing here. With `duplicates: drop` a pair is
left out that repeats one of the round's own, or another given one, of the same prompt.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from workers.algorithms.pairs import GOLD_MARGIN, Index, Pairs, Repeats, completion_hashes
from workers.config import PairsConfig
from workers.given import is_given
from workers.near_duplicates import NearDuplicates
from workers.types import Experience, Floats


def mixed_pairs(own: Pairs, experience: Experience, scores: Floats, config: PairsConfig, *, seed: int) -> Pairs:
    """Return the given pairs of a round that its own pairs do not repeat.

    Args:
        own: pairs made of the round's samples.
        experience: samples of the round, then the groups of given pairs.
        scores: scores of the completions, after the length penalty: [N].
    """
    chosen = np.flatnonzero(is_given(experience))[::2]
    kept = np.ones(len(chosen), bool)
    if config.duplicates == "drop":
        kept = ~_are_repeats(own, chosen, experience, config, seed=seed)
    num_duplicates, chosen = len(chosen) - int(kept.sum()), chosen[kept]
    margins = scores[chosen] - scores[chosen + 1]
    if config.gold == "chosen":  # the scores decided nothing
        margins = np.full(len(chosen), GOLD_MARGIN, np.float32)
    return Pairs(chosen=chosen, rejected=chosen + 1, margins=margins, num_duplicates=num_duplicates)


def joined(own: Pairs, given: Pairs) -> Pairs:
    """Return the pairs of a round: its own ones, then those mixed in."""
    return Pairs(
        chosen=np.concatenate([own.chosen, given.chosen]),
        rejected=np.concatenate([own.rejected, given.rejected]),
        margins=np.concatenate([own.margins, given.margins]),
    )


def _are_repeats(
    own: Pairs, chosen: Index, experience: Experience, config: PairsConfig, *, seed: int
) -> NDArray[np.bool_]:
    """Return which of the given pairs, by their chosen completion [n], repeat an own or an earlier given one."""
    near = NearDuplicates(experience.completions, config.near_duplicate) if config.near_duplicate is not None else None
    repeats, found = Repeats(completion_hashes(experience, seed), near), np.zeros(len(chosen), bool)
    group_of = experience.group_of
    of_prompt: dict[bytes, list[int]] = {}  # given pairs, as indices into `chosen`
    for pair, group in enumerate(group_of[chosen].tolist()):
        of_prompt.setdefault(experience.prompt_tokens[group].tobytes(), []).append(pair)
    own_of_prompt: dict[bytes, list[tuple[int, int]]] = {}
    for i, j in zip(own.chosen.tolist(), own.rejected.tolist(), strict=True):
        own_of_prompt.setdefault(experience.prompt_tokens[group_of[i]].tobytes(), []).append((i, j))
    for prompt, given in of_prompt.items():
        repeats.of_prompt(prompt)
        for i, j in own_of_prompt.get(prompt, ()):
            repeats.add(i, j)
        for pair in given:
            i = int(chosen[pair])
            found[pair] = repeats.has(i, i + 1)
            if not found[pair]:
                repeats.add(i, i + 1)
    return found
