"""The two objectives of the quickstart, their best frontier, and interpolated weights."""

from __future__ import annotations

import runpy
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from benchmarks.objectives import ROOT, best, interpolate

TASK = runpy.run_path(str(ROOT / "configs" / "quickstart" / "task.py"))


@pytest.mark.parametrize(
    ("note", "thorough", "brief"),
    [
        ("a", 0.0, 1.0),
        ("ab", 1 - 0.75**2, 1 - 0.25**2),  # of the four letters after the first it has one
        ("abc", 0.75, 0.75),
        ("abcfh", 1.0, 0.0),
        ("", 0.0, 0.0),
        ("abf", 0.0, 0.0),  # left one out
        ("abcfhi", 0.0, 0.0),
    ],
)
def test_a_note_is_the_beginning_of_the_answer(note: str, thorough: float, brief: float) -> None:
    assert TASK["thorough"](["hcafb>"], [note], ["abcfh"]) == [thorough]
    assert TASK["brief"](["hcafb>"], [note], ["abcfh"]) == [brief]


@pytest.mark.parametrize("weight", [0.0, 0.25, 0.5, 0.75, 1.0])
def test_the_best_note_has_the_share_of_the_weight(weight: float) -> None:
    # d/dx of w (1 − (1 − x)²) + (1 − w) (1 − x²) is 2 w (1 − x) − 2 (1 − w) x, which is 0 at x = w
    assert best(["abcfh", "abcde"], weight) == pytest.approx((1 - (1 - weight) ** 2, 1 - weight**2))


def test_weights_are_interpolated(tmp_path: Path) -> None:
    for name, value in (("first", 1.0), ("second", 5.0)):
        (tmp_path / name).mkdir()
        save_file({"w": torch.full((2,), value)}, tmp_path / name / "model.safetensors")
        (tmp_path / name / "config.json").write_text(name)
        (tmp_path / name / "manifest.json").write_text("sums")
    interpolate(tmp_path / "first", tmp_path / "second", 0.25, tmp_path / "soup")
    assert load_file(tmp_path / "soup" / "model.safetensors")["w"].tolist() == [2.0, 2.0]
    assert sorted(path.name for path in (tmp_path / "soup").iterdir()) == ["config.json", "model.safetensors"]
    assert (tmp_path / "soup" / "config.json").read_text() == "first"
