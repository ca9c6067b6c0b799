"""Algorithms: the record of each registered method, by the `type` that a recipe gives."""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module

from workers.algorithms.base import Algorithm
from workers.config import METHODS, Method


def _record(method: type[Method]) -> Algorithm:
    record = import_module(method.implementation).ALGORITHM
    assert isinstance(record, Algorithm), method.implementation
    return record


ALGORITHMS: Mapping[str, Algorithm] = {name: _record(method) for name, method in METHODS.items()}
