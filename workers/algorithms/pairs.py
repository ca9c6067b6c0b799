"""Preference pairs from scored groups. Pure numpy.

Three selections, each of at most `pairs_per_prompt` pairs of a group, each by seed:

    best_worst   best with worst, second best with second worst, …: the clearest pairs, no completion twice
    random       drawn from all pairs with a margin, no completion twice
    all          drawn from all pairs with a margin; with a limit of G(G − 1)/2 these are all pairs of G completions
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
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


def all_pairs(
    scores: Floats, group_offsets: NDArray[np.int64], *, pairs_per_prompt: int, min_margin: float, seed: int
) -> Pairs:
    """Pairs of each group whose scores differ by more than `min_margin`, at most `pairs_per_prompt` drawn by `seed`.

    A completion may be in several pairs.
    """
    pairs, group_of = _shuffled(scores, group_offsets, min_margin, seed)
    begins = np.searchsorted(group_of, group_of)  # where the pair's group begins
    return _take(pairs, np.flatnonzero(np.arange(len(pairs)) - begins < pairs_per_prompt))


def random_pairs(
    scores: Floats, group_offsets: NDArray[np.int64], *, pairs_per_prompt: int, min_margin: float, seed: int
) -> Pairs:
    """As `all_pairs`, but a completion is in one pair at most: a pair that takes one again is passed over."""
    pairs, group_of = _shuffled(scores, group_offsets, min_margin, seed)
    is_used, room = np.zeros(len(scores), bool), np.full(len(group_offsets) - 1, pairs_per_prompt)
    kept = []
    for i, (chosen, rejected, group) in enumerate(zip(pairs.chosen, pairs.rejected, group_of, strict=True)):
        if room[group] and not is_used[chosen] and not is_used[rejected]:
            is_used[[chosen, rejected]] = True
            room[group] -= 1
            kept.append(i)
    return _take(pairs, np.asarray(kept, np.int64))


def _shuffled(
    scores: Floats, group_offsets: NDArray[np.int64], min_margin: float, seed: int
) -> tuple[Pairs, NDArray[np.int64]]:
    """Every pair whose scores differ by more than `min_margin`, group after group, in random order within a group;
    and the group of each pair [P]."""
    assert scores.shape == (group_offsets[-1],), (scores.shape, group_offsets[-1])
    assert np.isfinite(scores).all(), "scores must be finite"
    sizes = np.diff(group_offsets)
    firsts, seconds, groups = ([np.zeros(0, np.int64)] for _ in range(3))
    for size in np.unique(sizes):
        same = np.flatnonzero(sizes == size)
        one, other = np.triu_indices(size, 1)
        firsts.append((group_offsets[same, None] + one).reshape(-1))
        seconds.append((group_offsets[same, None] + other).reshape(-1))
        groups.append(np.repeat(same, len(one)))
    first, second, group_of = (np.concatenate(parts) for parts in (firsts, seconds, groups))
    margins = scores[first] - scores[second]
    pairs = Pairs(
        chosen=np.where(margins > 0, first, second),
        rejected=np.where(margins > 0, second, first),
        margins=np.abs(margins),
    )
    lots = np.random.Generator(np.random.Philox(seed)).random(len(pairs))
    order = np.lexsort((lots, group_of))
    order = order[pairs.margins[order] > min_margin]
    return _take(pairs, order), group_of[order]


def _take(pairs: Pairs, which: NDArray[np.int64]) -> Pairs:
    return Pairs(chosen=pairs.chosen[which], rejected=pairs.rejected[which], margins=pairs.margins[which])


SELECTIONS: Mapping[str, Callable[..., Pairs]] = {
    "best_worst": best_with_worst,
    "all": all_pairs,
    "random": random_pairs,
}
