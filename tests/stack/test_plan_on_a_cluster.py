"""Agreement of the planner with Ray, which places groups on two nodes with eight pretended GPUs each."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from orchestrator.config import load
from orchestrator.plan.advice import as_overrides
from orchestrator.plan.gpus import GPUS, GPUS_PER_NODE
from orchestrator.plan.plan import make_plan

pytestmark = [pytest.mark.stack, pytest.mark.long]

HERE = Path(__file__).parent
CONFIGS = HERE.parents[1] / "configs"
NODES = 2
NUM_GPUS = NODES * GPUS_PER_NODE
RECIPES = ("8b/grpo.yaml", "8b/dpo.yaml", "8b/rlhf_classic.yaml", "8b/distill.yaml")
WHOLE_NODES = ["rollout.tensor_parallel_size=8", "rollout.num_engines=1", "policy.num_ranks=8"]
TOO_MANY = ["policy.num_ranks=13", "rollout.num_engines=4"]  # 17 of 16
TOO_WIDE = ["policy.num_ranks=8", "rollout.num_engines=1", "rollout.tensor_parallel_size=16"]


def fitting() -> list[tuple[str, list[str]]]:
    """Return the three best placements of each recipe, and one with an engine that takes a whole node."""
    found = []
    for recipe in RECIPES:
        loaded = load(CONFIGS / recipe)
        stage = loaded.stages[-1]
        plan = make_plan(stage, GPUS["H100"], before=loaded.before(stage), given=NUM_GPUS)
        assert plan.placements
        found += [(recipe, as_overrides(placement.changes)) for placement in plan.placements[:3]]
    return [*found, ("8b/grpo.yaml", WHOLE_NODES)]


def refused() -> list[tuple[str, list[str]]]:
    for overrides in (TOO_MANY, TOO_WIDE):
        config = load(CONFIGS / "8b/grpo.yaml", overrides).stages[-1]
        assert not make_plan(config, GPUS["H100"], given=NUM_GPUS).fits
    return [("8b/grpo.yaml", TOO_MANY), ("8b/grpo.yaml", TOO_WIDE)]


@pytest.fixture(scope="module")
def answers() -> dict[str, Any]:
    requested = [*fitting(), *refused()]
    done = subprocess.run(
        [sys.executable, str(HERE / "fake_gpus.py"), str(NODES), str(GPUS_PER_NODE)],
        input=json.dumps(requested),
        env={key: value for key, value in os.environ.items() if not key.startswith("RAY_")},
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    results: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return {**results, "requested": requested}


def test_the_cluster_reports_its_gpus(answers: dict[str, Any]) -> None:
    assert answers["accelerators"] == ["H100"]


def test_what_the_plan_says_fits_is_placed(answers: dict[str, Any]) -> None:
    count = len(fitting())
    not_placed = [
        requested
        for requested, placed in zip(answers["requested"][:count], answers["placed"], strict=False)
        if not placed
    ]
    assert not_placed == []
    assert count == 3 * len(RECIPES) + 1


def test_what_the_plan_refuses_is_not_placed(answers: dict[str, Any]) -> None:
    assert answers["placed"][-2:] == [False, False]
