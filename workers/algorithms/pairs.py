"""Preference pairs from scored groups. Pure numpy.

Three selections. Each makes at most `pairs_per_prompt` pairs of a group and is deterministic given the seed:

    best_worst   best with worst, second best with second worst, and so on; no completion twice
    random       drawn at random from all pairs with a margin; no completion twice
    all          drawn at random from all pairs with a margin; with a limit of G(G − 1)/2 all pairs of G completions
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from workers.types import Floats


@dataclass(frozen=True, kw_only=True, slots=True)
class Pairs:
    """P pairs of completions of the same prompt, in the order of their groups.

    Example: completions 0 and 3 with scores 1.0 and 0.25 are `Pairs(chosen=[0], rejected=[3], margins=[0.75])`.
    """

    chosen: NDArray[np.int64]  # [P] index of the completion in the experience
    rejected: NDArray[np.int64]  # [P] index of the completion in the experience
    margins: Floats  # [P] score of chosen minus score of rejected

    def __len__(self) -> int:
        return len(self.margins)


def best_with_worst(
    scores: Floats, group_offsets: NDArray[np.int64], *, pairs_per_prompt: int, min_margin: float, seed: int
) -> Pairs:
    """Pair each group's best completion with its worst, the second best with the second worst, and so on.

    A completion is in at most one pair. A pair is left out if its scores do not differ by more than `min_margin`. Ties
    between equal scores are broken at random by `seed`. A dataset's group of two, with scores (1, 0), gives one pair.
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
    """Draw at most `pairs_per_prompt` pairs of each group from those whose scores differ by more than `min_margin`.

    A completion may be in several pairs.
    """
    pairs, group_of = _shuffled(scores, group_offsets, min_margin, seed)
    begins = np.searchsorted(group_of, group_of)  # index of the first pair of the same group
    return _take(pairs, np.flatnonzero(np.arange(len(pairs)) - begins < pairs_per_prompt))


def random_pairs(
    scores: Floats, group_offsets: NDArray[np.int64], *, pairs_per_prompt: int, min_margin: float, seed: int
) -> Pairs:
    """Draw pairs like `all_pairs`, but skip a pair if one of its completions is in an earlier pair."""
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
    """Return all pairs whose scores differ by more than `min_margin`, and the group of each pair, [P].

    Pairs are ordered by group, and in random order within a group.
    """
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
