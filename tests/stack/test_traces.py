"""Comparison of metrics with a golden trace. `make golden-check` runs the recipes and compares them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import traces
from shipped import QUICKSTART


@pytest.fixture
def golden(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[dict[str, str]], None]:
    """Return a function that writes a trace of one line as if the given machine had made it."""

    def write(machine: dict[str, str]) -> None:
        row = {"step": 1, "loss": 0.5, "kl": 0.0}
        (tmp_path / "some.json").write_text(json.dumps({"machine": machine, "metrics": [row]}))

    monkeypatch.setattr(traces, "GOLDEN", tmp_path)
    return write


@pytest.mark.parametrize(
    ("found", "reported"),
    [
        ({"step": 1, "loss": 0.5, "kl": 0.0}, []),
        ({"step": 1, "loss": 0.50000001, "kl": 0.0}, ["some, step 1: loss is 0.50000001, the trace has 0.5"]),
        ({"step": 1, "loss": 0.5}, ["some, step 1: kl is there in one only"]),
    ],
)
def test_the_same_machine_is_exact(
    golden: Callable[[dict[str, str]], None], found: dict[str, Any], reported: list[str]
) -> None:
    golden(traces.machine())
    assert traces.differences([found], "some") == reported


def test_another_kind_of_machine_is_not_compared(golden: Callable[[dict[str, str]], None]) -> None:
    golden({"model name": "another"})
    (reported,) = traces.differences([{"step": 1, "loss": 0.75, "kl": 0.0}], "some")
    assert "they cannot be compared" in reported


def test_a_shorter_run_is_reported(golden: Callable[[dict[str, str]], None]) -> None:
    golden(traces.machine())
    assert traces.differences([], "some") == ["some: 0 lines of metrics, the trace has 1"]


def test_every_quickstart_recipe_has_its_trace() -> None:
    recipes = {path.stem for path in QUICKSTART} - set(traces.WITHOUT)
    assert {path.stem for path in traces.GOLDEN.glob("*.json")} == recipes, "run make golden"
