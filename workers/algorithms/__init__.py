"""Algorithms: the record of each registered method, by the `type` that a recipe gives. Light at import."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import cache
from importlib import import_module
from typing import TYPE_CHECKING

from workers.config import METHODS

if TYPE_CHECKING:
    from workers.algorithms.base import Algorithm


@cache
def _record(implementation: str) -> Algorithm:
    from workers.algorithms.base import Algorithm

    record = import_module(implementation).ALGORITHM
    assert isinstance(record, Algorithm), implementation
    return record


class _Records(Mapping[str, "Algorithm"]):
    """Records of the methods that train, by type. A module, which computes with torch, is imported when it is read."""

    def __getitem__(self, type: str) -> Algorithm:
        if not METHODS[type].needs.trains:
            raise KeyError(type)
        return _record(METHODS[type].implementation)

    def __iter__(self) -> Iterator[str]:
        return (name for name, method in METHODS.items() if method.needs.trains)

    def __len__(self) -> int:
        return sum(1 for _ in self)


ALGORITHMS: Mapping[str, Algorithm] = _Records()
