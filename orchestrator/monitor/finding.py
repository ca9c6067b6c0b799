"""Finding of a detector."""

from __future__ import annotations

from dataclasses import dataclass

from orchestrator.monitor.trends import Level


@dataclass(frozen=True, kw_only=True, slots=True)
class Finding:
    """Observation that triggers an alarm.

    Example: `Finding(saw="KL 31 nats (median of 5 steps), budget 25", rows=5)`.
    """

    saw: str  # the observed values, in words
    rows: int  # number of newest rows, or updates, in one of which the problem began; 0: it begins in each row anew
    is_certain: bool = True  # False: it may be chance, so that it only warns


def began(level: Level) -> int:
    """Return the number of newest rows in which the problem began: a round samples from what the one before learned."""
    return 2 if level.rows == 1 else level.rows
