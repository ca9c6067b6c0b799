"""Remarks on a dataset before training: findings that are not errors."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from workers.config import AlgorithmConfig, DpoConfig, KtoConfig, RewardModelConfig
from workers.types import Example
from workers.votes import share_of_votes


@dataclass(frozen=True, kw_only=True, slots=True)
class Labels:
    """Labels and votes of a dataset. Example: four pairs, two of them with votes of one mind:
    `Labels(rows=4, good=0, voted=2, divided=0)`."""

    rows: int
    good: int  # completions with a label that are good
    voted: int  # rows with `votes`
    divided: int  # rows whose votes are not all for the same completion


def count_labels(examples: Iterable[Example]) -> Labels:
    rows = good = voted = divided = 0
    for example in examples:
        share = share_of_votes(example.prompt.columns)
        rows, good = rows + 1, good + (example.scores == (1.0,))
        voted, divided = voted + (share is not None), divided + (share is not None and share < 1)
    return Labels(rows=rows, good=good, voted=voted, divided=divided)


def remarks(labels: Labels, algorithm: AlgorithmConfig) -> list[str]:
    """Return the remarks on a dataset, one line each.

    KTO (arXiv 2402.01306) recommends desirable_weight · n_desirable between 1 and 4/3 times
    undesirable_weight · n_undesirable. `read_examples` ensures that there are examples of both kinds.
    """
    if isinstance(algorithm, DpoConfig | RewardModelConfig):
        return _votes(labels, algorithm)
    if not isinstance(algorithm, KtoConfig):
        return []
    good, bad = labels.good, labels.rows - labels.good
    ratio = algorithm.desirable_weight * good / (algorithm.undesirable_weight * bad)
    if 1 <= round(ratio, 6) <= round(4 / 3, 6):
        return []
    low = algorithm.undesirable_weight * bad / good
    return [
        f"{good} desirable and {bad} undesirable rows have a weight ratio of {ratio:.2f}: set "
        f"algorithm.desirable_weight from {low:.2f} to {low * 4 / 3:.2f} for the recommended 1 to 1.33"
    ]


def _votes(labels: Labels, algorithm: DpoConfig | RewardModelConfig) -> list[str]:
    if not labels.voted:
        unmet = "algorithm.soft_labels is votes, and no row has `votes`: all labels are 1"
        return [unmet] if isinstance(algorithm, DpoConfig) and algorithm.soft_labels == "votes" else []
    what = f"{labels.voted} of {labels.rows} rows have `votes`, {labels.divided} of them divided ones"
    if algorithm.soft_labels == "hard":
        return [f"{what}; their labels are 1 (algorithm.soft_labels: hard)"]
    if isinstance(algorithm, DpoConfig) and algorithm.soft_labels == "margin":
        return [f"{what}; their labels are of the margins (algorithm.soft_labels: margin)"]
    if isinstance(algorithm, DpoConfig) and not algorithm.takes_soft_labels:
        return [f"{what}; their labels are 1, as the loss takes no soft labels"]
    return [f"{what}; the share of the votes is their label (algorithm.soft_labels: hard would ignore it)"]
