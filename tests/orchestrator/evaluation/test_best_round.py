"""Choice of the best round: the highest figure, of equal ones the earliest, and how sure the choice is."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from orchestrator.evaluation.best_round import best, describe, figures, rewards_of
from orchestrator.rundir.exported import ExportedRound


def write_answers(path: Path, rewards: Sequence[float], mode: str = "greedy") -> Path:
    rows = [{"mode": mode, "prompt_id": f"p{i}", "reward": float(reward)} for i, reward in enumerate(rewards)]
    pq.write_table(pa.Table.from_pylist(rows), path)
    return path


def test_the_highest_figure_is_the_best_and_of_equal_ones_the_earliest() -> None:
    rows = [
        {"step": 0, "eval/reward": 0.9, "eval/sampled_reward": 0.1},
        {"step": 1, "eval/reward": 0.5, "eval/sampled_reward": 0.4},
        {"step": 2, "eval/reward": 0.75, "eval/sampled_reward": 0.3},
        {"step": 3, "loss": 1.0},
        {"step": 4, "eval/reward": 0.75, "eval/sampled_reward": None},
    ]
    assert figures(rows, "eval/reward") == {1: 0.5, 2: 0.75, 4: 0.75}, "the initial model is not a round"
    assert best(figures(rows, "eval/reward")) == 2
    assert best(figures(rows, "eval/sampled_reward")) == 1
    assert best({}) is None


def test_rounds_that_it_is_not_certainly_better_than_are_named(tmp_path: Path) -> None:
    draw = np.random.default_rng(0)
    third = draw.random(200)
    answers = {
        1: write_answers(tmp_path / "1", third - 0.3 + 0.1 * draw.standard_normal(200)),  # certainly worse
        2: write_answers(tmp_path / "2", third + 0.1 * draw.standard_normal(200)),
        3: write_answers(tmp_path / "3", third),
    }
    by_round = {n: float(np.mean(list(rewards_of(path, "greedy").values()))) for n, path in answers.items()}
    chosen = describe(3, by_round, answers, rounds=3, by="eval/reward")
    assert (chosen.round, chosen.rounds, chosen.value) == (3, 3, by_round[3])
    assert chosen.unsure == (2,), "prompts are paired: unpaired, the spread of 0.3 would hide that round 1 is worse"
    assert chosen.low is not None
    assert chosen.high is not None
    assert chosen.low < by_round[3] < chosen.high
    assert chosen.high - chosen.low == pytest.approx(2 * 1.96 * third.std() / np.sqrt(200), rel=0.1)


def test_answers_of_one_mode_are_averaged_by_prompt(tmp_path: Path) -> None:
    rows = [("greedy", "a", 1.0), ("sampled", "a", 0.0), ("sampled", "a", 0.5), ("sampled", "b", 1.0)]
    table = [{"mode": mode, "prompt_id": prompt, "reward": reward} for mode, prompt, reward in rows]
    pq.write_table(pa.Table.from_pylist(table), tmp_path / "x")
    assert rewards_of(tmp_path / "x", "sampled") == {"a": 0.25, "b": 1.0}


def test_without_stored_answers_there_is_no_interval(tmp_path: Path) -> None:
    (tmp_path / "2").write_bytes(b"damaged")
    answers = {n: tmp_path / str(n) for n in (1, 2)}
    chosen = describe(2, {1: 0.5, 2: 0.75}, answers, rounds=2, by="eval/reward")
    assert chosen == ExportedRound(round=2, rounds=2, by="eval/reward", value=0.75, unsure=(1,))
    assert str(chosen) == "round 2 of 2, the best by eval/reward 0.75; not certainly better than round 1"


def test_the_choice_is_shown_and_comes_back_from_exit_json() -> None:
    chosen = ExportedRound(round=2, rounds=4, by="eval/reward", value=0.9961, low=0.98, high=1.0, unsure=(3, 4))
    assert ExportedRound.of({**chosen.to_dict(), "unsure": [3, 4]}) == chosen
    assert str(chosen) == (
        "round 2 of 4, the best by eval/reward 0.996 [0.98, 1]; not certainly better than round 3 and 4"
    )
    assert str(ExportedRound(round=3, rounds=3)) == "round 3 of 3, the last"
    assert [ExportedRound.of(body) for body in (None, [], {"round": 1}, {"other": 1})] == [None] * 4
