"""Statistics of a step: what each rank measured, and the row of metrics of all. Light at import."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TypeAlias

Metrics: TypeAlias = dict[str, float]


@dataclass(frozen=True, kw_only=True, slots=True)
class ObjectiveTotals:
    """Rows and tokens of an objective in an update, in the mean over the updates of a step.

    Example: `ObjectiveTotals(name="safety", rows=19.5, tokens=4096.0)`.
    """

    name: str
    rows: float
    tokens: float  # of completions


@dataclass(frozen=True, kw_only=True, slots=True)
class Totals:
    """Sizes of one optimiser update over all ranks (the denominators of a loss), and its baseline."""

    rows: int
    completions: int
    tokens: int
    desirable: int = 0  # rows with label 1
    baseline: float | None = None  # mean log π(y) − log π_ref(y) over the baseline's completions; None: no baseline
    objectives: tuple[ObjectiveTotals, ...] = ()  # in the order of the batch's names; empty: rows have no objective


@dataclass(frozen=True, kw_only=True, slots=True)
class StepStats:
    """Statistics of one step from one rank.

    The metric over all ranks is the sum of `sums`, the largest of `maxima` and the smallest of `minima`. `facts` are
    equal on every rank.

    Example: `StepStats(sums={"loss": 0.35}, maxima={}, facts={"reward": 0.5, "grad_norm": 1.2})`.
    """

    sums: Metrics
    maxima: Metrics
    facts: Metrics
    minima: Metrics = field(default_factory=dict)
    left: int = 0  # optimiser updates of the step that remain


def merge_ranks(parts: Sequence[StepStats]) -> StepStats:
    """Combine the statistics of all ranks for the same updates."""
    first = parts[0]
    return StepStats(
        sums={name: sum(p.sums[name] for p in parts) for name in first.sums},
        maxima={name: max(p.maxima[name] for p in parts) for name in first.maxima},
        minima={name: min(p.minima[name] for p in parts) for name in first.minima},
        facts=first.facts,
        left=first.left,
    )


def flat(stats: StepStats) -> Metrics:
    """Return all statistics as one row of metrics."""
    return {**stats.facts, **stats.sums, **stats.maxima, **stats.minima}


def merge_stats(parts: Sequence[StepStats]) -> Metrics:
    """Combine the statistics of all ranks into one row of metrics."""
    return flat(merge_ranks(parts))
