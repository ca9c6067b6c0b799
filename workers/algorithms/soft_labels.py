"""Probability that a completion is preferred, from the scores or the votes of its labellers. Pure numpy.

    margin     p(y beats y') = σ((s(y) − s(y')) / label_temperature): the Bradley–Terry model of the scores s
    votes      p(y beats y') = share of the scorers, by weight, that prefer y: by_votes
               of a dataset's row: share of its annotators, from the column `votes`: row_labels
    win_rate   the scores are win rates themselves, those of a pairwise reward; for SPPO alone

The label of a pair is p(y_c beats y_r) for the chosen and p(y_r beats y_c) for the rejected completion. Under SPPO
(arXiv 2405.00675) it is the win rate of each completion: the mean of p over the other completions of its group. The
paper's estimate includes the completion itself, which draws it to 1/2; without it the estimate is unbiased.

The rows of a dataset that have `votes` are labelled by them unless the settings say otherwise (`hard`, `margin`).

With `votes` the label of the chosen completion is below 1/2 where most scorers disagree with the reward by which it was
chosen. `pairs.min_agreement` leaves such pairs out: the label of the chosen is their agreement.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from workers.config import DpoConfig
from workers.types import Experience, Floats, ScoredBatch
from workers.votes import share_of_votes

Index: TypeAlias = NDArray[np.int64]
Preference: TypeAlias = Callable[[Index, Index], NDArray[np.float64]]
"""Function (completions y [n], completions y' [n]) -> p(y beats y') [n]."""


def soft_labels(scored: ScoredBatch, scores: Floats, picked: Index, config: DpoConfig) -> Floats | None:
    """Return the label of each completion of the pairs: [2P]. None: hard labels.

    Args:
        scores: scores by which the pairs were made: [N].
        picked: completions of the pairs, chosen and rejected in turn: [2P].
    """
    of_dataset = scored.by_scorer is None and scored.experience.logprobs is None
    match config.soft_labels:
        case "hard":
            return None
        case None:
            return row_labels(scored.experience, picked) if config.takes_soft_labels and of_dataset else None
        case "votes" if of_dataset:
            return row_labels(scored.experience, picked)
        case "margin":
            preference = by_margin(scores, config.label_temperature)
        case "votes":
            assert scored.by_scorer, "there are no scorers to vote"
            preference = by_votes(scored.by_scorer, scored.weights)
        case "win_rate":
            assert scored.rewards is not None
            return scored.rewards[picked]
    if config.loss_type == "sppo":
        return win_rates(preference, picked, scored.experience).astype(np.float32)
    return preference(picked, picked.reshape(-1, 2)[:, ::-1].reshape(-1)).astype(np.float32)


def row_labels(experience: Experience, picked: Index) -> Floats | None:
    """Return the labels of a dataset's pairs from the votes of their rows: [2P]. None: no row has votes.

    A row without votes has the labels 1 and 0. The votes are for the first completion of the row, its chosen one.

    Args:
        picked: completions of the pairs, chosen and rejected in turn: [2P].
    """
    groups = experience.group_of[picked[::2]]
    shares = [share_of_votes(experience.prompts[group].columns) for group in groups]
    if all(share is None for share in shares):
        return None
    first = np.array([1.0 if share is None else share for share in shares])
    is_first = picked[::2] == experience.group_offsets[:-1][groups]  # a length penalty may choose the other one
    chosen = np.where(is_first | [share is None for share in shares], first, 1 - first)
    return np.stack([chosen, 1 - chosen], axis=1).reshape(-1).astype(np.float32)


def by_margin(scores: Floats, temperature: float) -> Preference:
    """Return the Bradley–Terry model of `scores` [N].

    >>> by_margin(np.float32([2.0, 0.0]), temperature=2.0)(np.array([0]), np.array([1])).round(2)
    array([0.73])
    """

    def preference(first: Index, second: Index) -> NDArray[np.float64]:
        margins = (scores[first].astype(np.float64) - scores[second]) / temperature
        return 0.5 * (1 + np.tanh(margins / 2))  # σ without overflow

    return preference


def by_votes(by_scorer: Mapping[str, Floats], weights: Mapping[str, float]) -> Preference:
    """Return the share of the scorers that prefer a completion, by the absolute value of their weights.

    A scorer prefers the completion that it scores higher, with a negative weight the other one. A tie is half a vote. A
    scorer with weight 0, or whose score of either completion is NaN, does not vote. If none votes, either completion is
    preferred with probability 1/2.

    Args:
        by_scorer: scores of each scorer: [N].
        weights: weights of the scorers; one that is missing: 1.
    """
    of_scorers = np.array([weights.get(name, 1.0) for name in by_scorer])
    scores = np.stack(list(by_scorer.values()))[of_scorers != 0]  # [voters, N]
    of_voters = of_scorers[of_scorers != 0][:, None]

    def preference(first: Index, second: Index) -> NDArray[np.float64]:
        differences = scores[:, first] - scores[:, second]
        votes = np.where(differences == 0, 0.5, differences * of_voters > 0)
        cast = np.abs(of_voters) * ~np.isnan(differences)
        total = cast.sum(0)
        return np.where(total > 0, (votes * cast).sum(0) / np.where(total > 0, total, 1), 0.5)

    return preference


def num_voters(by_scorer: Mapping[str, Floats], weights: Mapping[str, float]) -> int:
    """Return the number of scorers whose weight is not 0."""
    return sum(weights.get(name, 1.0) != 0 for name in by_scorer)


def win_rates(preference: Preference, picked: Index, experience: Experience) -> NDArray[np.float64]:
    """Return the mean of p(y beats y') over the other completions y' of y's group, for each of `picked`: [n]."""
    begins, sizes = experience.group_offsets[:-1], np.diff(experience.group_offsets)
    groups = experience.group_of[picked]
    owner = np.repeat(np.arange(len(picked)), sizes[groups])
    within = np.arange(len(owner)) - np.repeat(np.cumsum(sizes[groups]) - sizes[groups], sizes[groups])
    others = begins[groups][owner] + within
    beats = np.where(others == picked[owner], 0, preference(picked[owner], others))
    rates: NDArray[np.float64] = np.bincount(owner, weights=beats, minlength=len(picked)) / (sizes[groups] - 1)
    return rates
