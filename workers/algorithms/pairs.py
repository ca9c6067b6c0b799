"""Preference pairs from scored groups. Pure numpy.

    scores ──length penalty──► selection in each group ──repeats, disputed left out──► at most `max_pairs` of the step

A pair (i, j) of a group is possible if the score of i exceeds that of j by more than `min_margin`, i may be chosen and
the two differ. A selection is an order of the possible pairs, from which pairs are taken one after the other:

    max_min      the best i first, and for it the worst j           (RLHFlow/Online-RLHF; arXiv 2405.07863)
    max_random   the best i first, and for it a random j            (the same)
    max_max      the best i first, and for it the best j            (the same)
    random       at random
    all          at random
    quantile     at random, i from the best and j from the worst `quantile` of the group

All but `all` take no completion twice: `max_min` goes on with the second best and the second worst. `quantile` avoids
the extremes, which hurt in large groups: arXiv 2502.16825 rejects the sample at μ − 2σ of the scores instead of the
worst.

A pair is left out if fewer than `min_agreement` of the scorers prefer i (soft_labels.by_votes). No other pair of the
group takes its place: it would have a smaller margin.

The score of a completion is s(y) − `length_penalty` · |y| with |y| in tokens. RLHFlow's max_min_p counts characters.

Random choices depend on the seed and on tokens alone: the order of the groups does not matter.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from workers.algorithms.metrics import error_of
from workers.algorithms.soft_labels import Preference, by_votes, num_voters
from workers.config import PairsConfig
from workers.config.pairs import Selection
from workers.gold import is_gold
from workers.near_duplicates import NearDuplicates
from workers.ragged import Ragged
from workers.stats import Metrics
from workers.types import Experience, Finish, Floats, ScoredBatch

Index: TypeAlias = NDArray[np.int64]
Hashes: TypeAlias = NDArray[np.uint64]
ROUNDING = 1e-6  # of a sum of weights
GOLD_MARGIN = 1.0
"""Margin of a pair that a gold answer decides, as of a dataset's pair without a margin."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Pairs:
    """P pairs of completions of the same prompt, in the order of their groups.

    Example: completions 0 and 3 with scores 1.0 and 0.25 are `Pairs(chosen=[0], rejected=[3], margins=[0.75])`.
    """

    chosen: Index  # [P] index of the completion in the experience
    rejected: Index  # [P] index of the completion in the experience
    margins: Floats  # [P] score of chosen minus score of rejected
    num_duplicates: int = 0  # pairs left out because they repeat another one, or because their completions do
    num_capped: int = 0  # pairs left out because there are more than `max_pairs`
    num_disagreed: int = 0  # pairs left out because too few scorers prefer the chosen completion
    agreement: NDArray[np.float64] | None = (
        None  # [P] share of the scorers that prefer chosen; None: fewer than two vote
    )

    def __len__(self) -> int:
        return len(self.margins)


def pairs_of(scored: ScoredBatch, config: PairsConfig) -> tuple[Pairs, Floats]:
    """Make the pairs of a step. Return also the scores that they are made from, after the length penalty: [N]."""
    assert scored.rewards is not None
    scores = penalised(scored.rewards, scored.experience, config)
    scorers = scored.by_scorer or {}
    preference = by_votes(scorers, scored.weights) if num_voters(scorers, scored.weights) > 1 else None
    pairs = make_pairs(scored.experience, scores, config, seed=scored.seed, preference=preference)
    if preference is not None:
        pairs = replace(pairs, agreement=preference(pairs.chosen, pairs.rejected))
    return pairs, scores


def penalised(scores: Floats, experience: Experience, config: PairsConfig) -> Floats:
    """Return the scores after the length penalty: [N]."""
    penalised_scores: Floats = (scores - config.length_penalty * experience.completions.lengths).astype(np.float32)
    return penalised_scores


def may_be_chosen(experience: Experience, config: PairsConfig) -> NDArray[np.bool_]:
    """Return the completions that the settings allow to be chosen: [N]."""
    if config.gold == "chosen":
        return is_gold(experience)
    if config.truncated_chosen:
        return np.ones(len(experience.completions), bool)
    ended: NDArray[np.bool_] = experience.finish == Finish.stop
    return ended


def make_pairs(
    experience: Experience, scores: Floats, config: PairsConfig, *, seed: int, preference: Preference | None = None
) -> Pairs:
    """Make the pairs of a step.

    Args:
        scores: scores of the completions, after the length penalty: [N].
        preference: share of the scorers that prefer one completion to another; for `min_agreement`.
    """
    assert scores.shape == (len(experience.completions),), (scores.shape, len(experience.completions))
    assert np.isfinite(scores).all(), "scores must be finite"
    if are_given(experience, config):
        return given_pairs(experience, scores, config)
    hashes = completion_hashes(experience, seed)
    near = None
    if config.duplicates == "drop" and config.near_duplicate is not None:
        near = NearDuplicates(experience.completions, config.near_duplicate)
    allowed, gold = may_be_chosen(experience, config), is_gold(experience)
    prompts = [tokens.tobytes() for tokens in experience.prompt_tokens]
    by_group: list[list[tuple[int, int]]] = [[] for _ in prompts]
    repeats, num_duplicates = Repeats(hashes, near), 0
    for group in _by_content(experience, prompts, hashes, scores):
        members = slice(*experience.group_offsets[group : group + 2].tolist())
        first, second = possible_pairs(
            scores[members],
            hashes[members],
            allowed=allowed[members],
            is_gold=gold[members],
            may_be_equal=experience.logprobs is None,
            config=config,
        )
        repeats.of_prompt(prompts[group])
        by_group[group], dropped = _take(first + members.start, second + members.start, repeats, config)
        num_duplicates += dropped
    chosen, rejected = np.array([pair for pairs in by_group for pair in pairs], np.int64).reshape(-1, 2).T
    agreed = _agreed(chosen, rejected, preference, config)
    chosen, rejected = chosen[agreed], rejected[agreed]
    kept = _capped(_mix(hashes[chosen], hashes[rejected], salt=1), config.max_pairs)
    margins = np.full(len(chosen), GOLD_MARGIN, np.float32)
    if config.gold != "chosen":
        margins = scores[chosen] - scores[rejected]
    return Pairs(
        chosen=chosen[kept],
        rejected=rejected[kept],
        margins=margins[kept],
        num_duplicates=num_duplicates,
        num_capped=len(chosen) - len(kept),
        num_disagreed=int((~agreed).sum()),
    )


def are_given(experience: Experience, config: PairsConfig) -> bool:
    """Return whether every group has two completions of which nothing is left out, as in a dataset of pairs."""
    is_kept = config.duplicates == "keep" and config.max_pairs is None and config.gold == "never"
    is_kept = is_kept and config.min_agreement is None
    return is_kept and bool((np.diff(experience.group_offsets) == 2).all())


def given_pairs(experience: Experience, scores: Floats, config: PairsConfig) -> Pairs:
    """Pair the two completions of each group if the better one may be chosen, and if samples differ: all at once."""
    order = np.arange(len(scores)).reshape(-1, 2)
    is_second_better = scores[1::2] > scores[::2]
    chosen = np.where(is_second_better, order[:, 1], order[:, 0])
    rejected = np.where(is_second_better, order[:, 0], order[:, 1])
    kept = scores[chosen] - scores[rejected] > config.min_margin
    kept &= may_be_chosen(experience, config)[chosen]
    if experience.logprobs is not None:
        kept &= ~_are_equal(experience.completions)
    chosen, rejected = chosen[kept], rejected[kept]
    return Pairs(chosen=chosen, rejected=rejected, margins=scores[chosen] - scores[rejected])


def _are_equal(completions: Ragged) -> NDArray[np.bool_]:
    """Return which of the pairs (0, 1), (2, 3), … have equal tokens: [N / 2]."""
    lengths = completions.lengths
    equal: NDArray[np.bool_] = lengths[::2] == lengths[1::2]
    first = 2 * np.flatnonzero(equal)
    differ = completions.take(first).values != completions.take(first + 1).values
    owner = np.repeat(np.arange(len(first)), lengths[first])
    equal[first // 2] = np.bincount(owner, weights=differ, minlength=len(first)) == 0
    return equal


def pair_metrics(pairs: Pairs, experience: Experience, config: PairsConfig | None) -> Metrics:
    """Return the number of pairs, what was left out of them and, if there are any, their mean margin and lengths.

    A group is saturated if it gives no pair: its scores are equal, or closer than `min_margin`, its scorers disagree,
    its completions are duplicates, or none may be chosen.

    Args:
        config: settings by which samples were paired; None: the pairs are of a dataset.
    """
    group_of, num_groups, lengths = experience.group_of, len(experience.prompts), experience.completions.lengths
    num_paired = len(np.unique(group_of[pairs.chosen]))
    metrics = {"pairs/count": float(len(pairs)), "pairs/saturated_groups": 1 - num_paired / num_groups}
    if config is not None:
        truncated = (experience.finish != Finish.stop) & ~may_be_chosen(experience, config)
        num_samples = np.bincount(group_of[~is_gold(experience)], minlength=num_groups)
        num_truncated = np.bincount(group_of[truncated], minlength=num_groups)
        metrics |= {
            "pairs/duplicates": float(pairs.num_duplicates),
            "pairs/capped": float(pairs.num_capped),
            "pairs/truncated": float(truncated.sum()),
            "pairs/truncated_groups": float((num_truncated == num_samples).mean()),
        }
        if config.min_agreement is not None:
            metrics["pairs/disagreement"] = float(pairs.num_disagreed)
    if len(pairs):
        margin = float(pairs.margins.mean(dtype=np.float64))
        metrics |= {
            "pairs/margin": margin,
            "objective/scores_margin": margin,
            "pairs/chosen_length": float(lengths[pairs.chosen].mean()),
            "pairs/rejected_length": float(lengths[pairs.rejected].mean()),
        }
        if pairs.agreement is not None:
            metrics["pairs/agreement"] = float(pairs.agreement.mean())
            metrics |= error_of("pairs/agreement", pairs.agreement, group_of[pairs.chosen])
        gaps = lengths[pairs.chosen] - lengths[pairs.rejected]
        metrics |= {"pairs/length_gap": float(gaps.mean())}
        metrics |= error_of("pairs/length_gap", gaps, group_of[pairs.chosen])
        if config is not None and config.gold != "never":
            metrics["pairs/gold"] = float(is_gold(experience)[pairs.chosen].mean())
    return metrics


# ------------------------------------------------------------------------------------------------ selection


def possible_pairs(
    scores: Floats,
    hashes: Hashes,
    *,
    allowed: NDArray[np.bool_],
    is_gold: NDArray[np.bool_],
    may_be_equal: bool,
    config: PairsConfig,
) -> tuple[Index, Index]:
    """Return the possible pairs (chosen [n], rejected [n]) of one group, in the order of the selection.

    Args:
        scores: scores of the group's completions: [G].
        hashes: hashes of their tokens and of the seed: [G].
        allowed: completions that may be chosen: [G].
        is_gold: gold answers, which are never rejected: [G].
        may_be_equal: pair equal completions, too. A dataset's pairs are taken as they are.
    """
    better = allowed[:, None] & ~is_gold[None, :]
    if not may_be_equal:
        better &= hashes[:, None] != hashes[None, :]
    if config.gold != "chosen":
        better &= scores[:, None] - scores[None, :] > config.min_margin
    best_first = np.lexsort((hashes, -scores))  # ties are broken by the hashes
    if config.selection == "quantile":
        for_chosen, for_rejected = best_first[allowed[best_first]], best_first[~is_gold[best_first]]
        better &= _member(for_chosen[: _share(for_chosen, config)], len(scores))[:, None]
        better &= _member(for_rejected[::-1][: _share(for_rejected, config)], len(scores))[None, :]
    chosen, rejected = np.nonzero(better)
    rank = np.empty(len(scores), np.int64)
    rank[best_first] = np.arange(len(scores))
    order = ORDERS[config.selection](rank[chosen], rank[rejected], _mix(hashes[chosen], hashes[rejected], salt=0))
    return chosen[order], rejected[order]


def _agreed(chosen: Index, rejected: Index, preference: Preference | None, config: PairsConfig) -> NDArray[np.bool_]:
    """Return which of the pairs [n] at least `min_agreement` of the scorers agree with."""
    if config.min_agreement is None:
        return np.ones(len(chosen), bool)
    assert preference is not None, "there are no scorers to agree"
    agreed: NDArray[np.bool_] = preference(chosen, rejected) >= config.min_agreement - ROUNDING
    return agreed


def _share(candidates: Index, config: PairsConfig) -> int:
    return int(np.ceil(config.quantile * len(candidates)))


def _member(indices: Index, size: int) -> NDArray[np.bool_]:
    member = np.zeros(size, bool)
    member[indices] = True
    return member


ORDERS: Mapping[Selection, Callable[[Index, Index, Hashes], Index]] = {
    # selection → (rank of chosen, rank of rejected, random number) of the possible pairs -> their order
    "max_min": lambda chosen, rejected, lot: np.lexsort((-rejected, chosen)),
    "max_random": lambda chosen, rejected, lot: np.lexsort((lot, chosen)),
    "max_max": lambda chosen, rejected, lot: np.lexsort((rejected, chosen)),
    "random": lambda chosen, rejected, lot: np.argsort(lot, kind="stable"),
    "all": lambda chosen, rejected, lot: np.argsort(lot, kind="stable"),
    "quantile": lambda chosen, rejected, lot: np.argsort(lot, kind="stable"),
}


def _take(chosen: Index, rejected: Index, repeats: Repeats, config: PairsConfig) -> tuple[list[tuple[int, int]], int]:
    """Take pairs in their order, and count those that are left out as duplicates.

    A pair that repeats another one uses up its completions, so that the count is that of the pairs which
    `duplicates: keep` would make as well. A gold answer is chosen several times.
    """
    taken: list[tuple[int, int]] = []
    num_duplicates, limit = 0, config.per_prompt or len(chosen)
    while len(chosen) and len(taken) < limit:
        i, j = int(chosen[0]), int(rejected[0])
        left = np.arange(len(chosen)) > 0
        is_equal = config.duplicates == "drop" and repeats.equal(i, j)
        is_repeat = is_equal or (config.duplicates == "drop" and repeats.has(i, j))
        num_duplicates += is_repeat
        if not is_repeat:
            taken.append((i, j))
            repeats.add(i, j)
        if config.selection != "all" and not is_equal:
            left &= (rejected != i) & (rejected != j) & (chosen != j)
            left &= (chosen != i) | (config.gold == "chosen")
        chosen, rejected = chosen[left], rejected[left]
    return taken, num_duplicates


class Repeats:
    """Pairs taken so far of one prompt, in any of its groups."""

    def __init__(self, hashes: Hashes, near: NearDuplicates | None) -> None:
        self._hashes, self._near = hashes, near
        self._prompt, self._taken = b"", list[tuple[int, int]]()

    def of_prompt(self, prompt: bytes) -> None:
        """Start anew if `prompt` is another one."""
        if prompt != self._prompt:
            self._prompt, self._taken = prompt, []
            if self._near:
                self._near.forget()

    def add(self, chosen: int, rejected: int) -> None:
        self._taken.append((chosen, rejected))

    def has(self, chosen: int, rejected: int) -> bool:
        return any(self.equal(chosen, first) and self.equal(rejected, second) for first, second in self._taken)

    def equal(self, one: int, other: int) -> bool:
        """Return whether two completions of the prompt are equal, or nearly so."""
        same = bool(self._hashes[one] == self._hashes[other])
        return same or (self._near is not None and self._near(one, other))


# ------------------------------------------------------------------------------------------------ order and chance


def completion_hashes(experience: Experience, seed: int) -> Hashes:
    """Return a 64-bit hash of the seed, the prompt and the completion, for each completion: [N].

    Equal completions of a prompt have equal hashes, and the hashes of others are independent random numbers.
    """
    hashes = np.empty(len(experience.completions), np.uint64)
    start = hashlib.blake2b(seed.to_bytes(8, "little", signed=True), digest_size=8)
    for group, tokens in enumerate(experience.prompt_tokens):
        head = start.copy()
        head.update(len(tokens).to_bytes(8, "little") + np.ascontiguousarray(tokens, np.int32).tobytes())
        for i in range(*experience.group_offsets[group : group + 2].tolist()):
            digest = head.copy()
            digest.update(np.ascontiguousarray(experience.completions[i], np.int32).tobytes())
            hashes[i] = int.from_bytes(digest.digest(), "little")
    return hashes


def _by_content(experience: Experience, prompts: Sequence[bytes], hashes: Hashes, scores: Floats) -> list[int]:
    """Return the groups in an order that depends on their content alone. Groups of equal prompts are neighbours."""

    def content(group: int) -> tuple[bytes, list[tuple[int, float]]]:
        members = slice(*experience.group_offsets[group : group + 2].tolist())
        return prompts[group], sorted(zip(hashes[members].tolist(), scores[members].tolist(), strict=True))

    return sorted(range(len(prompts)), key=content)


def _mix(first: Hashes, second: Hashes, *, salt: int) -> Hashes:
    """Combine two hashes and a number into a random number (finaliser of SplitMix64): [n]."""
    x: Hashes = first * np.uint64(0x9E3779B97F4A7C15) + second + np.uint64(salt)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def _capped(lots: Hashes, limit: int | None) -> Index:
    """Return the indices of the pairs with the `limit` smallest random numbers, in their order; None: of all pairs."""
    return np.sort(np.argsort(lots, kind="stable")[:limit])
