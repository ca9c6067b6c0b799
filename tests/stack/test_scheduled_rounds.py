"""Rounds that differ, on the real stack: schedules, a fixed pool, the policy from the base, a moving average."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import torch
from attempts import RECIPES, Run
from families import read_jsonl
from processes import Command
from safetensors.torch import load_file

pytestmark = pytest.mark.stack

Finished = Callable[..., Run]
STEPS = {1: 2, 2: 4, 3: 2}  # updates of each round: its pairs in batches of 4, times its passes
Weights = dict[str, torch.Tensor]


def weights(directory: Path) -> Weights:
    return load_file(directory / "model.safetensors")


def difference(first: Weights, second: Weights) -> float:
    return max(float((first[name] - second[name]).abs().max()) for name in first)


@pytest.mark.long
def test_each_round_has_its_own_settings(finished: Finished, qwen2: Path) -> None:
    run = finished("scheduled", qwen2)
    assert run.exit["cause"] == "completed"
    records = [json.loads((run.path / "rounds" / str(n) / "round.json").read_text()) for n in (1, 2, 3)]
    assert [record["settings"] for record in records] == [
        {"temperature": t, "num_generations": n, "learning_rate": pytest.approx(rate), "beta": b, "num_iterations": i}
        for t, n, rate, b, i in ((0.8, 4, 3e-4, 0.1, 1), (1.3, 4, 2e-4, 0.2, 2), (1.3, 6, 1e-4, 0.2, 1))
    ]
    updates = read_jsonl(run.path / "updates.jsonl")
    for step, rate in ((1, 3e-4), (2, 2e-4), (3, 1e-4)):
        assert [row["learning_rate"] for row in updates if row["step"] == step] == pytest.approx([rate] * STEPS[step])
    ledger = read_jsonl(run.path / "ledger.jsonl")
    assert [r["details"]["completions"] for r in ledger if r["fact"] == "GENERATED"] == [8 * 4, 8 * 4, 8 * 6]


def test_the_pool_is_the_same_in_every_round(finished: Finished, qwen2: Path) -> None:
    run = finished("scheduled", qwen2)
    pools = [{row["prompt_id"] for row in pairs(run, number)} for number in (1, 2, 3)]
    assert len(set.union(*pools)) <= 8


def pairs(run: Run, number: int) -> list[dict[str, object]]:
    rows: list[dict[str, object]] = pq.read_table(run.path / "rounds" / str(number) / "pairs.parquet").to_pylist()
    return rows


@pytest.mark.long
def test_the_reference_is_the_moving_average_of_the_policies(finished: Finished, qwen2: Path) -> None:
    """Check the second round's: 0.25 of the initial model and 0.75 of the policy after the first round."""
    run, base = finished("scheduled", qwen2), weights(qwen2 / "runs" / "base" / "model")
    initial, second, third = (weights(run.path / "reference" / f"version-{n}") for n in (0, 1, 2))
    assert difference(initial, base) == 0
    assert difference(second, initial) > 0
    policy = {name: (second[name] - 0.25 * initial[name]) / 0.75 for name in base}
    exported = finished("scheduled", qwen2, "name=one-round", "algorithm.max_steps=1", *ONE_ROUND)
    assert difference(policy, weights(exported.path / "model")) < 1e-6
    assert difference(third, second) > 0


ONE_ROUND = (
    "rounds.temperature=[0.8]",
    "rounds.num_generations=[4]",
    "rounds.learning_rate=[3.0e-4]",
    "rounds.beta=[0.1]",
    "rounds.num_iterations=[1]",
)


@pytest.mark.long
def test_every_round_learns_from_the_initial_model(finished: Finished, qwen2: Path) -> None:
    """Check that at a tiny learning rate the last round ends at the initial model, not at that of the round before."""
    run = finished("scheduled", qwen2, "name=from-base", "rounds.learning_rate=[3.0e-4, 3.0e-4, 1.0e-9]")
    base = weights(qwen2 / "runs" / "base" / "model")
    assert difference(weights(run.path / "model"), base) < 1e-6
    assert difference(weights(run.path / "reference" / "version-2"), base) > 1e-4
    assert not (run.path / "base").exists()
    assert max(run.figures("sampling/logp_difference_max")) < 1e-3, "the engines are compared with the policy they hold"


@pytest.mark.long
def test_a_run_that_is_killed_within_a_round_resumes_to_the_same_end(finished: Finished, qwen2: Path) -> None:
    whole, stopped = finished("scheduled", qwen2), Run(qwen2 / "runs" / "stopped-rounds")
    with Command("run", str(RECIPES / "scheduled.yaml"), "name=stopped-rounds", cwd=qwen2) as command:
        command.read_until("round 1/3")
        os.kill(command.pid, signal.SIGKILL)
        command.exit_code()
    with Command("resume", "runs/stopped-rounds", cwd=qwen2) as command:
        assert command.exit_code() == 0, command.output
        assert command.leaves_nothing_behind()
    assert stopped.metrics_without_clocks == whole.metrics_without_clocks
    assert stopped.weights_digest == whole.weights_digest
