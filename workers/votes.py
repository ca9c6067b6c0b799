"""Votes of annotators on a pair, in the column `votes` of a dataset's row: {"for": 2, "against": 1, "tie": 0}."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeGuard


def share_of_votes(columns: Mapping[str, Any]) -> float | None:
    """Return the share of a row's votes that are for its chosen completion; None: the row has none.

    A tie is half a vote.

    >>> share_of_votes({"votes": {"for": 2, "against": 1, "tie": 1}})
    0.625
    """
    votes = columns.get("votes")
    if not has_votes(votes):
        return None
    ties = votes.get("tie") or 0
    return float((votes["for"] + ties / 2) / (votes["for"] + votes["against"] + ties))


def has_votes(votes: Any) -> TypeGuard[Mapping[str, Any]]:
    """Return whether a value of the column `votes` counts votes for and against the chosen completion."""
    return isinstance(votes, Mapping) and votes.get("for") is not None and votes.get("against") is not None
