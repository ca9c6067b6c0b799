"""How a run is compared with its golden trace; `make golden-check` runs and compares."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import traces


@pytest.fixture
def golden(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[dict[str, str]], None]:
    """Writes a trace of one line as if a machine had made it."""

    def write(machine: dict[str, str]) -> None:
        row = {"step": 1, "loss": 0.5, "kl": 0.0}
        (tmp_path / "some.json").write_text(json.dumps({"machine": machine, "metrics": [row]}))

    monkeypatch.setattr(traces, "GOLDEN", tmp_path)
    return write


@pytest.mark.parametrize(
    ("found", "told"),
    [
        ({"step": 1, "loss": 0.5, "kl": 0.0}, []),
        ({"step": 1, "loss": 0.50000001, "kl": 0.0}, ["some, step 1: loss is 0.50000001, the trace has 0.5"]),
        ({"step": 1, "loss": 0.5}, ["some, step 1: kl is there in one only"]),
    ],
)
def test_the_same_machine_is_exact(
    golden: Callable[[dict[str, str]], None], found: dict[str, Any], told: list[str]
) -> None:
    golden(traces.machine())
    assert traces.differences([found], "some") == told


@pytest.mark.parametrize(("loss", "is_told"), [(0.50004, False), (0.5001, True)])
def test_another_machine_may_round_otherwise(
    golden: Callable[[dict[str, str]], None], loss: float, is_told: bool
) -> None:
    """1e-4 of 0.5 is 0.00005."""
    golden({"cpu": "another"})
    assert bool(traces.differences([{"step": 1, "loss": loss, "kl": 1e-7}], "some")) == is_told


def test_a_shorter_run_is_told(golden: Callable[[dict[str, str]], None]) -> None:
    golden(traces.machine())
    assert traces.differences([], "some") == ["some: 0 lines of metrics, the trace has 1"]
