"""Remarks on a dataset before training: findings that are not errors."""

from __future__ import annotations

from collections.abc import Sequence

from workers.config import AlgorithmConfig, KtoConfig
from workers.types import Example


def remarks(examples: Sequence[Example], algorithm: AlgorithmConfig) -> list[str]:
    """Return the remarks on a dataset, one line each.

    KTO (arXiv 2402.01306) recommends desirable_weight · n_desirable between 1 and 4/3 times
    undesirable_weight · n_undesirable. `read_examples` ensures that there are examples of both kinds.
    """
    if not isinstance(algorithm, KtoConfig):
        return []
    good = sum(example.scores == (1.0,) for example in examples)
    bad = len(examples) - good
    ratio = algorithm.desirable_weight * good / (algorithm.undesirable_weight * bad)
    if 1 <= round(ratio, 6) <= round(4 / 3, 6):
        return []
    low = algorithm.undesirable_weight * bad / good
    return [
        f"{good} desirable and {bad} undesirable rows have a weight ratio of {ratio:.2f}: set "
        f"algorithm.desirable_weight from {low:.2f} to {low * 4 / 3:.2f} for the recommended 1 to 1.33"
    ]
