"""Conflict of settings, and the error that carries all conflicts of one config."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True, slots=True)
class Conflict:
    """Settings that cannot be used together.

    Example: `Conflict(keys=("critic",), why="grpo has no critic", fix="remove critic")`.
    """

    keys: tuple[str, ...]  # dotted; the problem is reported at the first that the recipe gives
    why: str
    fix: str


class ConflictsError(ValueError):
    """All conflicts of one config."""

    def __init__(self, conflicts: Sequence[Conflict]) -> None:
        self.conflicts = tuple(conflicts)
        super().__init__("; ".join(f"{', '.join(c.keys)}: {c.why} ({c.fix})" for c in conflicts))
