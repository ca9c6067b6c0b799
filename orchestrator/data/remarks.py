"""What is worth saying of a dataset before a run learns from it, though it is no error."""

from __future__ import annotations

from collections.abc import Sequence

from workers.config import AlgorithmConfig, KtoConfig
from workers.types import Example


def remarks(examples: Sequence[Example], algorithm: AlgorithmConfig) -> list[str]:
    """One line for each remark.

    KTO (arXiv 2402.01306) wants desirable_weight · n_desirable between 1 and 4/3 times
    undesirable_weight · n_undesirable. Examples hold both kinds: `read_examples` sees to it.
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
        f"{good} desirable and {bad} undesirable rows weigh {ratio:.2f} to 1: with algorithm.desirable_weight from "
        f"{low:.2f} to {low * 4 / 3:.2f} it would be 1 to 1.33, as KTO's authors advise"
    ]
