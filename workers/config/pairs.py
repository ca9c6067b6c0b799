"""Settings of preference pairs made from scored groups of completions."""

from __future__ import annotations

import math
from typing import Annotated, Literal, Self, TypeAlias

from pydantic import Field

from workers.config.base import Count, NonNegative, Settings

Selection: TypeAlias = Literal["max_min", "max_random", "max_max", "random", "all", "quantile"]


PAIRS_OF_SAMPLES = (
    "max_pairs",
    "duplicates",
    "near_duplicate",
    "truncated_chosen",
    "gold",
    "keep_groups",
    "min_agreement",
)
"""Settings of the pairs that a policy's own samples make. A dataset's rows are paired as they are given."""


class PairsConfig(Settings):
    """Preference pairs made from a prompt's group of completions, and the pairs that are left out."""

    # selection of a group's pairs; max_min: best with worst, second best with second worst, and so on; max_random: best
    # with a random worse one; max_max: best with the best worse one; random: drawn from all pairs; quantile: drawn from
    # the top and the bottom `quantile`; in these no completion is in two pairs; all: drawn from all pairs, a completion
    # may be in several
    selection: Selection = "max_min"
    per_prompt: Count | None = 1  # number of pairs made from each group, at most; None: all that the selection allows
    # share of the group that the chosen, and the share that the rejected completion is drawn from; for selection
    # quantile
    quantile: Annotated[float, Field(gt=0, le=0.5)] = 0.25
    # score subtracted per token of a completion before pairing (RLHFlow's max_min_p)
    length_penalty: NonNegative = 0.0
    min_margin: NonNegative = 0.0  # score difference that a pair must exceed, after the length penalty
    # share of the rewards, by weight, that must prefer the chosen completion; a tie is half a vote, a reward with
    # weight 0 does not vote; None: no limit
    min_agreement: Annotated[float, Field(gt=0, le=1)] | None = None
    max_pairs: Count | None = None  # number of pairs of a step (round), at most, drawn at random; None: no limit
    # handling of pairs that repeat another pair of their prompt, or whose completions are nearly equal; drop: drop and
    # count them
    duplicates: Literal["drop", "keep"] = "drop"
    # Jaccard similarity of their token 3-grams from which two completions are duplicates; None: only equal completions
    near_duplicate: Annotated[float, Field(gt=0, le=1)] | None = 0.9
    truncated_chosen: bool = False  # permission to choose a completion without an end of sequence
    # gold answer of a prompt (column `chosen` or `completion`); never: not used; add: one more candidate of the group,
    # with its own score, never rejected; chosen: the chosen completion of every pair, whatever the scores (SPIN, arXiv
    # 2401.01335)
    gold: Literal["never", "add", "chosen"] = "never"
    # write the scored groups of each round to rounds/N/groups.parquet, from which `rlhf pair` makes pairs again
    keep_groups: bool = True

    def most_pairs(self, num_prompts: int, num_generations: int) -> int:
        """Return the number of pairs that groups of samples give at most.

        >>> PairsConfig(per_prompt=4).most_pairs(num_prompts=10, num_generations=6)
        30
        """
        rejected = math.ceil(self.quantile * num_generations) if self.selection == "quantile" else num_generations
        candidates = num_generations + (self.gold == "add")
        if self.gold == "chosen":
            possible = rejected
        else:
            possible = math.comb(candidates, 2) if self.selection == "all" else min(candidates // 2, rejected)
        pairs = num_prompts * min(self.per_prompt or possible, possible)
        return min(self.max_pairs or pairs, pairs)

    def for_dataset(self) -> Self:
        """Return the settings for the completions of a dataset, which are paired as they are given."""
        given = {
            "max_pairs": None,
            "duplicates": "keep",
            "truncated_chosen": True,
            "gold": "never",
            "min_agreement": None,
        }
        return self.model_copy(update=given)
