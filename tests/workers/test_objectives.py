"""Metrics per objective: those of a step with several objectives are those of steps with one each."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fakes import experience
from methods import COMMON, GROUPS, figures
from torch_engine import learner_of

from workers.objectives import objective_facts, objective_totals, with_objectives
from workers.ragged import Ragged
from workers.stats import Metrics, ObjectiveTotals, StepStats
from workers.types import Prompt, ScoredBatch, TokenShard, TrainBatch

PAIRS = [(prompt, completions[:2]) for prompt, completions in [*GROUPS[:3], GROUPS[3], *GROUPS[:2]]]
NAMES = ("help", "safe", "help", "safe", "safe", "help")
DPO = {"type": "dpo", **COMMON}
REWARD_MODEL = {"type": "reward_model", "head": "scores", **COMMON}
SFT = {"type": "sft", **COMMON}


def prompts(names: Sequence[str | None]) -> tuple[Prompt, ...]:
    return tuple(Prompt(id=f"p{i}", text="", objective=name) for i, name in enumerate(names))


def step(
    model: Path, algorithm: dict[str, Any], which: Sequence[int], names: Sequence[str | None] = NAMES, **settings: Any
) -> StepStats:
    """Train on some of the pairs of a dataset, and return the statistics."""
    groups = [PAIRS[i] for i in which]
    rows = experience(groups, rewards=[1.0, 0.0] * len(groups), prompts=prompts([names[i] for i in which]))
    tokens = len(rows.completions.values)
    reference = [TokenShard(completions=np.arange(2 * len(groups)), values=np.full(tokens, -2.5, np.float32))]
    recipe = {key: value for key, value in algorithm.items() if key != "head"}
    learner, _ = learner_of(model, recipe, head=algorithm.get("head", "logprobs"), **settings)
    return learner.step(0, [rows], None, reference if algorithm["type"] in ("dpo", "kto") else None, None)


def of(stats: StepStats, objective: str) -> Metrics:
    """Return the metrics of an objective by their last names."""
    return {name.rpartition("/")[2]: value for name, value in stats.sums.items() if f"/{objective}/" in name}


@pytest.mark.parametrize("algorithm", [DPO, REWARD_MODEL, SFT], ids=lambda a: str(a["type"]))
def test_an_objective_has_the_metrics_of_its_rows_alone(qwen2: Path, algorithm: dict[str, Any]) -> None:
    together = step(qwen2, algorithm, range(6))
    totals = {"dpo": {"rewards/accuracies": "accuracy", "rewards/margins": "margin"}}
    totals["reward_model"] = {"accuracy": "accuracy", "margin": "margin"}
    for objective in ("help", "safe"):
        alone = step(qwen2, algorithm, [i for i, name in enumerate(NAMES) if name == objective])
        expected = {"loss": alone.sums["loss"]}
        expected |= {ours: alone.sums[name] for name, ours in totals.get(str(algorithm["type"]), {}).items()}
        assert of(together, objective) == pytest.approx(expected, rel=1e-4)
        assert together.facts[f"data/{objective}/rows"] == 3


@pytest.mark.parametrize("algorithm", [DPO, REWARD_MODEL, SFT], ids=lambda a: str(a["type"]))
def test_micro_batches_and_ranks_add_up(qwen2: Path, algorithm: dict[str, Any]) -> None:
    whole = figures(step(qwen2, algorithm, range(6)))
    assert figures(step(qwen2, algorithm, range(6), budget=1)) == pytest.approx(whole, rel=1e-4, abs=1e-5)
    ranks = [step(qwen2, algorithm, range(6), rank=rank, world_size=3, budget=30) for rank in range(3)]
    added = figures(*ranks)
    names = [name for name in whole if name.count("/") == 2]
    assert len(names) >= 4
    assert {name: added[name] for name in names} == pytest.approx({n: whole[n] for n in names}, rel=1e-4, abs=1e-5)


def test_rows_that_are_spread_unevenly_over_updates_weigh_alike(qwen2: Path) -> None:
    """Compare with one update, at a learning rate at which the policy does not move: the means are over all rows."""
    still = {**DPO, "learning_rate": 1e-30}
    at_once = step(qwen2, {**still, "batch_size": 6}, range(6), ("a", "b", "b", "b", "b", "b"))
    in_parts = step(qwen2, {**still, "batch_size": 2}, range(6), ("a", "b", "b", "b", "b", "b"))
    assert in_parts.facts["num_updates"] == 3
    for objective in ("a", "b"):
        assert of(in_parts, objective) == pytest.approx(of(at_once, objective), rel=1e-4, abs=1e-6)


def test_the_mean_over_objectives_is_the_loss_of_kto(qwen2: Path) -> None:
    stats = step(qwen2, {"type": "kto", **COMMON}, range(6), ("a", "b", "b", "a", "b", "b"))
    assert (2 * of(stats, "a")["loss"] + 4 * of(stats, "b")["loss"]) / 6 == pytest.approx(stats.sums["loss"], rel=1e-5)


def test_rows_without_an_objective_are_in_none(qwen2: Path) -> None:
    stats = step(qwen2, DPO, range(6), ("a", None, None, None, None, None))
    assert of(stats, "a")["loss"] == pytest.approx(step(qwen2, DPO, [0]).sums["loss"], rel=1e-4)
    assert {name.split("/")[1] for name in stats.sums if name.startswith("pairs/")} == {"a"}
    plain = step(qwen2, DPO, range(6), [None] * 6)
    assert not any(name.startswith("pairs/") for name in plain.sums)
    assert plain.sums["loss"] == stats.sums["loss"]


def test_totals_are_means_over_the_updates() -> None:
    batch = TrainBatch(
        prompts=Ragged.of([[1]] * 3),
        completions=Ragged.of([[1, 1], [1], [1], [1, 1, 1], [1], [1]]),
        row_offsets=np.array([0, 2, 4, 6]),
    )
    batch = with_objectives(batch, experience([([1], [[2], [3]])] * 3, prompts=prompts(["b", "a", "b"])))
    assert batch.objective_names == ("a", "b")
    assert batch.objectives is not None
    assert batch.objectives.tolist() == [1, 0, 1]
    # Rows 0 and 1, then 2 and 0: "b" has 3 rows of 3, 2 and 3 tokens in two updates.
    assert objective_totals(batch, [np.array([0, 1]), np.array([2, 0])]) == (
        ObjectiveTotals(name="a", rows=0.5, tokens=2.0),
        ObjectiveTotals(name="b", rows=1.5, tokens=4.0),
    )


def test_rewards_of_samples_by_objective() -> None:
    sampled = experience([([1], [[2], [3]]), ([4], [[5], [6]])], logprobs=[-1.0] * 4, prompts=prompts(["hard", None]))
    rewards = np.float32([1, 0, 1, 1])
    scored = ScoredBatch(experience=sampled, rewards=rewards, reference_logprobs=None, values=None)
    assert objective_facts(scored) == {"data/hard/rows": 1.0, "data/hard/reward": 0.5}
