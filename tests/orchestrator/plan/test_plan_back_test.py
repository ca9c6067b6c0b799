"""The planner against published runs: its error bounds, and the named exceptions to them."""

from __future__ import annotations

import re

import pytest

from benchmarks import back_test
from benchmarks.back_test import BOUNDS, EXCEPTIONS, Point, points
from benchmarks.worked_example import worked_example

POINTS = points()


def of_kind(*kinds: str) -> list[Point]:
    return [point for point in POINTS if point.kind in kinds]


def test_every_point_of_the_file_that_can_be_predicted_is() -> None:
    counts = {kind: len(of_kind(kind)) for kind in (*BOUNDS, "backtest-extra", "backtest-ratio", "backtest-memory")}
    in_file = [re.search(r"kind=([\w-]+)", row["note"])[1] for row in back_test.published()]  # type: ignore[index]
    assert counts == {kind: in_file.count(kind) for kind in counts}
    assert counts["backtest-decode"] == 18
    assert len(of_kind(back_test.ANOTHER_GPU)) == 6


@pytest.mark.parametrize("point", of_kind(*BOUNDS), ids=lambda point: point.id)
def test_each_prediction_is_within_its_bound(point: Point) -> None:
    if point.id in EXCEPTIONS:
        assert point.is_outside, f"{point.id} is within its bound: remove the exception"
    else:
        assert abs(point.ratio - 1) <= BOUNDS[point.kind], f"ratio {point.ratio:.2f}"


def test_the_median_error() -> None:
    assert len(of_kind("backtest-train", "backtest-e2e", "backtest-sync")) == 13
    assert back_test.median_error(POINTS) <= 0.07


def test_fitted_points_are_marked() -> None:
    """Check that only two of the points with a bound of 15 % are marked as used for no constant."""
    free = [p.id for p in of_kind("backtest-train", "backtest-e2e") if p.fitted.startswith("nothing")]
    assert free == ["nemorl-v0_5-llama-3_1-8b-1off-16-step", "nemorl-v0_5-qwen3-32b-1off-64-step"]


def test_error_on_another_gpu_and_another_release() -> None:
    """Check the points to which no constant was fitted."""
    assert all(0.85 <= point.ratio <= 1.17 for point in of_kind("backtest-extra"))
    assert all(0.8 <= point.ratio <= 1.55 for point in of_kind(back_test.ANOTHER_GPU))


@pytest.mark.parametrize(
    ("name", "learn", "score", "step"),
    [
        # 70B on 64 H100: 20.1 s of learning per 70B model, 5.22 s per pass; 2.28 s and 0.59 s of an 8B model
        ("PPO, 70B critic and reward model", 40.3, 20.9, 108),
        ("PPO, 8B critic and reward model", 22.4, 11.6, 81),
        ("GRPO of 16, reference and old log-probabilities", 20.1, 10.4, 76),
        ("GRPO of 16, the engine's log-probabilities, no reference", 20.1, 0.0, 66),
        ("Online DPO of 2, 8B reward model", 20.1, 5.8, 76),
        ("Offline DPO, reference each step", 20.1, 5.2, 25.4),
        ("Offline DPO, reference cached over 3 epochs", 20.1, 1.7, 21.9),
        ("Offline DPO, cached reference, prompts computed once per pair", 15.1, 1.3, 16.4),
    ],
)
def test_the_worked_example(name: str, learn: float, score: float, step: float) -> None:
    row = next(row for row in worked_example() if row.name == name)
    assert row.learn == pytest.approx(learn, rel=0.01)
    # The expected value has one decimal: 1.3 may be 1.26
    assert row.score == pytest.approx(score, rel=0.01, abs=0.05)
    assert row.step == pytest.approx(step, rel=0.05)


def test_generation_of_the_worked_example() -> None:
    generate = {row.name.split()[0]: row.generate for row in worked_example() if row.generate}
    assert generate["PPO,"] == pytest.approx(26.6, abs=0.05)
    assert generate["GRPO"] == pytest.approx(24.6, abs=0.05)
    assert generate["Online"] == pytest.approx(25.5, abs=0.05)


def test_the_page_says_what_the_planner_says() -> None:
    text = back_test.PAGE.read_text("utf-8")
    written = text.split(back_test.BEGIN)[1].split(back_test.END)[0].strip()
    assert written == back_test.tables().strip(), "run `make back-test`"
