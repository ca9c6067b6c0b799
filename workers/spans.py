"""Spans of a step's optimiser updates. The driver asks for one at a time; a checkpoint may follow each."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from workers.stats import Metrics, StepStats


@dataclass(frozen=True, kw_only=True, slots=True)
class UpdateRange:
    """Updates of a step that one call makes. Example: `UpdateRange(first=20, count=10)`: the 21st to the 30th."""

    first: int = 0
    count: int | None = None  # None: all from `first` on


@dataclass(frozen=True, kw_only=True, slots=True)
class Progress:
    """Progress within a step: the number of updates made, and their statistics over all ranks."""

    updates: int
    stats: StepStats
    critic: StepStats | None = None  # of the critic, if there is one


def merge_spans(spans: Sequence[StepStats]) -> StepStats:
    """Combine the statistics of consecutive spans of one step.

    `sums` are each span's part of the mean over the whole step, so they are added.
    """
    sums: dict[str, float] = {}
    for span in spans:
        for name, value in span.sums.items():
            sums[name] = sums.get(name, 0.0) + value
    made = np.asarray([span.facts.get("num_updates", 0.0) for span in spans])
    facts = {name: value for span in spans for name, value in span.facts.items()}
    facts["num_updates"] = float(made.sum())
    if "grad_norm" in facts:
        norms = np.asarray([span.facts.get("grad_norm", 0.0) for span in spans])
        facts["grad_norm"] = float((norms * made).sum() / made.sum())
    facts["timing/learn"] = sum(span.facts.get("timing/learn", 0.0) for span in spans)
    return StepStats(
        sums=sums,
        maxima={n: max(s.maxima[n] for s in spans if n in s.maxima) for s in spans for n in s.maxima},
        minima={n: min(s.minima[n] for s in spans if n in s.minima) for s in spans for n in s.minima},
        facts=facts,
        left=spans[-1].left,
    )


def cut_short(stats: StepStats, made: int) -> StepStats:
    """Return the statistics of a step that ends after `made` updates, as means over these; the same if none is left."""
    if not stats.left or not made:
        return stats
    factor = (made + stats.left) / made
    sums = {name: value * (1.0 if name.startswith("sampling/") else factor) for name, value in stats.sums.items()}
    return replace(stats, sums=sums, left=0)


def of_update(stats: StepStats, num_updates: int) -> Metrics:
    """Return the metrics of one update: means over that update, not its part of a step of `num_updates` updates.

    Facts about the experience of the step are left out: they belong to the step.
    """
    sums = {name: value * num_updates for name, value in stats.sums.items() if not name.startswith("sampling/")}
    own: Metrics = {name: stats.facts[name] for name in ("grad_norm", "learning_rate") if name in stats.facts}
    maxima = {name: value for name, value in stats.maxima.items() if not name.startswith("sampling/")}
    return {**own, **sums, **maxima, **stats.minima}
