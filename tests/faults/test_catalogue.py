"""Consistency of the catalogue of faults: each fault that counts as tested names an existing test."""

from __future__ import annotations

import ast
from pathlib import Path

import catalogue

TESTS = Path(__file__).parents[1]


def test_every_fault_is_listed_once() -> None:
    assert [fault.number for fault in catalogue.FAULTS] == [f"F{i}" for i in range(1, 61)]


def test_every_test_that_is_named_exists() -> None:
    for fault in catalogue.FAULTS:
        tested = fault.state in ("automated", "simulated")
        assert bool(fault.test) == tested, fault.number
        if tested:
            file, _, name = fault.test.partition("::")
            defined = {n.name for n in ast.parse((TESTS / file).read_text()).body if isinstance(n, ast.FunctionDef)}
            assert name in defined, f"{fault.number}: {fault.test}"


def test_a_fault_without_an_automated_test_gives_the_reason() -> None:
    for fault in catalogue.FAULTS:
        assert fault.why or fault.state in ("automated", "missing"), fault.number
