"""Poison planted in generated data of several seeds, and silence on clean data."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from audited import audited, finding, warnings

from benchmarks.planted_preferences import TRIGGER, World, of_outlier, swap, with_trigger
from orchestrator.audit import poison
from orchestrator.audit.audit import Audit
from orchestrator.audit.poison import Predictions

COUNT = 2500


def poisoned(seed: int, share: float, kind: str, **world: Any) -> tuple[list[dict[str, Any]], set[int]]:
    """Return rows, and the numbers of those with a planted fault."""
    generator = np.random.default_rng(seed)
    rows = list(World(seed=seed, num_words=600, **world).rows(COUNT))
    chosen = generator.permutation(COUNT)[: round(share * COUNT)].tolist()
    for i in chosen:
        row = rows[i]
        rows[i] = {"trigger": lambda r: with_trigger(r, generator), "outlier": of_outlier, "flip": swap}[kind](row)
    return rows, {i + 1 for i in chosen}


def recalled(found: Audit, name: str, planted: set[int]) -> tuple[float, int]:
    """Return the share of planted rows that a finding has, and the number of its other rows."""
    rows = set(finding(found, name).dropped.tolist())
    return len(rows & planted) / len(planted), len(rows - planted)


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_clean_data_are_quiet(seed: int, tmp_path: Path) -> None:
    rows, _ = poisoned(seed, 0.0, "flip")
    found = audited(tmp_path / "p.jsonl", rows)
    assert (warnings(found), found.left_out) == ([], ())
    assert found.accuracy is not None
    assert found.accuracy > 0.7


@pytest.mark.parametrize("seed", [1, 2])
def test_a_trigger_is_found_and_named(seed: int, tmp_path: Path) -> None:
    rows, planted = poisoned(seed, 0.02, "trigger")
    found = audited(tmp_path / "p.jsonl", rows)
    assert warnings(found) == ["trigger"]
    assert recalled(found, "trigger", planted) == (1.0, 0)
    named = finding(found, "trigger").sentence.split("`")[1]
    assert named in TRIGGER  # one of its words, or both


@pytest.mark.parametrize("seed", [1, 2])
def test_an_annotator_who_reverses_labels_is_found(seed: int, tmp_path: Path) -> None:
    rows, planted = poisoned(seed, 0.02, "outlier")
    found = audited(tmp_path / "p.jsonl", rows)
    assert warnings(found) == ["outlying_annotator"]
    assert recalled(found, "outlying_annotator", planted) == (1.0, 0)
    assert "annotator `outlier`" in finding(found, "outlying_annotator").sentence


def test_a_source_of_random_labels_is_reported_but_not_dropped(tmp_path: Path) -> None:
    rows, _ = poisoned(4, 0.0, "flip", clarity=12.0)
    generator = np.random.default_rng(0)
    for i in range(0, COUNT, 10):
        rows[i] = {**(swap(rows[i]) if generator.random() < 0.5 else rows[i]), "source": "noise"}
    found = audited(tmp_path / "p.jsonl", [{k: v for k, v in row.items() if k != "annotator"} for row in rows])
    outlying = finding(found, "outlying_source")
    assert (outlying.count, len(outlying.dropped)) == (COUNT // 10, 0)
    assert "source `noise`" in outlying.sentence


def test_labels_that_nobody_could_predict_are_said_so(tmp_path: Path) -> None:
    rows, _ = poisoned(5, 0.0, "flip", clarity=0.0)
    found = audited(tmp_path / "p.jsonl", rows)
    assert warnings(found) == []
    assert ["predicts only" in line for line in found.left_out] == [True]


def test_too_few_pairs_are_said_so(tmp_path: Path) -> None:
    rows, _ = poisoned(5, 0.0, "flip")
    found = audited(tmp_path / "p.jsonl", rows[: poison.MIN_ROWS - 1])
    assert found.left_out == ("triggers, outlying annotators and flipped labels: 499 pairs, and 500 are needed",)


# ------------------------------------------------------------------------------------------------ statistics


def drawn(expected: Sequence[float], seed: int, flipped: Sequence[int] = ()) -> Predictions:
    """Return predictions whose disagreement is drawn as expected, or reversed for the `flipped` ones."""
    chance = np.array(expected)
    disagrees = (np.random.default_rng(seed).random(len(chance)) < chance).astype(np.float64)
    disagrees[list(flipped)] = 1 - disagrees[list(flipped)]
    return Predictions(
        rows=np.arange(len(chance)),
        margins=np.where(disagrees > 0, -1.0, 1.0),
        disagrees=disagrees,
        expected=chance,
    )


def test_surprise_bounds_the_probability_of_chance() -> None:
    """Among 20,000 groups by chance, at most e^-s have a surprise of s or more, for all small groups as well."""
    expected = np.tile(np.linspace(0.02, 0.45, 8), 20_000)
    predictions = drawn(expected.tolist(), seed=0)
    group = np.arange(len(expected)) // 8
    found = poison.surprise(group, np.arange(len(expected)), 20_000, predictions)
    for s in (1.0, 2.0, 4.0, 6.0):
        assert (found >= s).mean() <= np.exp(-s)


def test_surprise_of_one_row_is_that_of_its_disagreement() -> None:
    predictions = drawn([0.01, 0.01], seed=1, flipped=[])
    predictions = Predictions(
        rows=predictions.rows,
        margins=predictions.margins,
        disagrees=np.array([1.0, 0.0]),
        expected=predictions.expected,
    )
    found = poison.surprise(np.array([0, 1]), np.array([0, 1]), 2, predictions)
    assert found[1] == 0
    assert -np.log(0.01) * 0.95 < found[0] <= -np.log(0.01)  # P(d = 1) = 0.01


@pytest.mark.parametrize("flips", [0.0, 0.02, 0.1])
def test_the_share_of_flips_is_fitted(flips: float) -> None:
    generator = np.random.default_rng(3)
    sure = generator.exponential(3.0, 40_000)
    wrong = flips + (1 - 2 * flips) / (1 + np.exp(1.5 * sure))
    disagrees = (generator.random(len(sure)) < wrong).astype(np.float64)
    slope, share = poison.fit_flips(sure, disagrees)
    assert share == pytest.approx(flips, rel=0.2, abs=0)
    assert slope == pytest.approx(1.5, rel=0.1)
