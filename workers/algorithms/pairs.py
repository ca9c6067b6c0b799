"""Preference pairs from scored groups. Pure numpy."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from workers.types import Floats


@dataclass(frozen=True, kw_only=True, slots=True)
class Pairs:
    """P pairs of completions that answer the same prompt, in the order of their groups.

    Example, scores 1.0 and 0.25 of completions 0 and 3: `Pairs(chosen=[0], rejected=[3], margins=[0.75])`.
    """

    chosen: NDArray[np.int64]  # [P] which completion of the experience
    rejected: NDArray[np.int64]  # [P]
    margins: Floats  # [P] score of chosen minus score of rejected

    def __len__(self) -> int:
        return len(self.margins)


def best_with_worst(
    scores: Floats, group_offsets: NDArray[np.int64], *, pairs_per_prompt: int, min_margin: float, seed: int
) -> Pairs:
    """Each group's best with its worst, second best with second worst, and so on: at most `pairs_per_prompt`.

    A completion is in one pair at most. A pair whose scores do not differ by more than `min_margin` (at 0:
    equal scores) says nothing and is left out. `seed` decides between equal scores. A dataset's group of two,
    scored (1, 0), becomes the one pair that it is.
    """
    assert scores.shape == (group_offsets[-1],), (scores.shape, group_offsets[-1])
    assert np.isfinite(scores).all(), "scores must be finite"
    sizes = np.diff(group_offsets)
    group_of = np.repeat(np.arange(len(sizes)), sizes)
    lots = np.random.Generator(np.random.Philox(seed)).random(len(scores))
    ranked = np.lexsort((lots, -scores, group_of))  # group after group, each from best to worst

    # Pair k of a group takes its k-th from the top and its k-th from the bottom: [G, K].
    k = np.arange(pairs_per_prompt)
    exists = k < sizes[:, None] // 2
    chosen = ranked[(group_offsets[:-1, None] + k)[exists]]
    rejected = ranked[(group_offsets[1:, None] - 1 - k)[exists]]
    margins = scores[chosen] - scores[rejected]
    kept = margins > min_margin
    return Pairs(chosen=chosen[kept], rejected=rejected[kept], margins=margins[kept])
