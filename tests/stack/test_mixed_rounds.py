"""Pairs of an earlier round and of a dataset in a round, on the real stack."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from attempts import Run
from families import read_jsonl

from workers.files.groups_file import read_groups

pytestmark = [pytest.mark.stack, pytest.mark.long]

Finished = Callable[..., Run]
Row = dict[str, object]


def rows(run: Run, number: int, name: str) -> list[Row]:
    found: list[Row] = pq.read_table(run.path / "rounds" / str(number) / f"{name}.parquet").to_pylist()
    return found


def test_a_round_trains_on_pairs_of_the_one_before_and_of_the_dataset(finished: Finished, qwen2: Path) -> None:
    run = finished("mixed", qwen2)
    assert run.exit["cause"] == "completed"
    first, second = (rows(run, number, "mixed") for number in (1, 2))
    assert [str(row["prompt_id"]).partition(":")[0] for row in first] == ["pairs.jsonl"] * 4
    of_round = [row for row in second if str(row["prompt_id"]).startswith("rounds/1/")]
    own = {(row["prompt_id"], row["chosen"], row["rejected"]) for row in rows(run, 1, "pairs")}
    earlier = {(str(row["prompt_id"]).removeprefix("rounds/1/"), row["chosen"], row["rejected"]) for row in of_round}
    assert earlier
    assert earlier <= own
    of_dataset = [row["prompt_id"] for row in second if row not in of_round]
    assert len({row["prompt_id"] for row in first} | set(of_dataset)) == 8, "other rows in each round"
    assert run.figures("pairs/mixed") == [len(first), len(second)]


def test_every_pair_is_in_an_update_and_samples_are_measured_alone(finished: Finished, qwen2: Path) -> None:
    run = finished("mixed", qwen2)
    updates = read_jsonl(run.path / "updates.jsonl")
    for step, own, mixed in zip((1, 2), run.figures("pairs/count"), run.figures("pairs/mixed"), strict=True):
        assert len([row for row in updates if row["step"] == step]) == math.ceil((own + mixed) / 4)
        groups, _ = read_groups(run.path / "rounds" / str(step) / "groups.parquet")
        assert groups.rewards is not None
        assert len(groups.experience.prompts) == 8
        assert run.figures("reward")[step - 1] == pytest.approx(float(groups.rewards.mean()), abs=1e-6)
    assert run.figures("staleness/max") == [0, 0]
    assert all(math.isfinite(value) for value in run.figures("objective/kl"))
    assert max(run.figures("sampling/logp_difference_max")) < 1e-3
