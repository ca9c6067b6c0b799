"""Tables with one entry for every role of a run."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Generic, TypeVar

T = TypeVar("T")


@dataclass(frozen=True, kw_only=True, slots=True)
class ByRole(Generic[T]):
    """One value for each role that orchestrator/pipeline/roles.py can start: a table that lacks one is a type error.

    Example: `MARKS["policy"] == "P"`.
    """

    policy: T
    critic: T
    reference: T
    base: T
    teacher: T
    rollout: T
    reward: T
    refusal: T
    dataset: T
    writer: T

    def __getitem__(self, role: str) -> T:
        value: T = getattr(self, role)
        return value
