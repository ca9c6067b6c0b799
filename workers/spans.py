"""Spans of a step's optimiser updates: a checkpoint may be taken between two spans."""

from __future__ import annotations

from dataclasses import dataclass

from workers.types import StepStats


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


def merge_spans(before: StepStats, after: StepStats) -> StepStats:
    """Combine the statistics of two spans of one step.

    `sums` are each span's part of the mean over the whole step, so they are added.
    """
    both = (before, after)
    made = [s.facts.get("num_updates", 0.0) for s in both]
    facts = {**before.facts, **after.facts, "num_updates": sum(made)}
    if "grad_norm" in before.facts and "grad_norm" in after.facts:
        facts["grad_norm"] = (before.facts["grad_norm"] * made[0] + after.facts["grad_norm"] * made[1]) / sum(made)
    facts["timing/learn"] = before.facts.get("timing/learn", 0.0) + after.facts.get("timing/learn", 0.0)
    return StepStats(
        sums={n: before.sums.get(n, 0.0) + after.sums.get(n, 0.0) for n in {**before.sums, **after.sums}},
        maxima={n: max(s.maxima[n] for s in both if n in s.maxima) for n in {**before.maxima, **after.maxima}},
        minima={n: min(s.minima[n] for s in both if n in s.minima) for n in {**before.minima, **after.minima}},
        facts=facts,
        left=after.left,
    )
