"""A round of hours under the default time limits: real Ray and loop, workers that sleep for the planned seconds."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from benchmarks.sleeping_rounds import Rounds, run, stage
from benchmarks.sleeping_workers import Durations
from orchestrator.cli.main import app
from orchestrator.config.run import ClusterConfig
from orchestrator.errors import DeadlineExceeded
from orchestrator.rundir.ledger import Fact, read_ledger

pytestmark = [pytest.mark.stack, pytest.mark.usefixtures("head")]

SCALE = 400  # planned seconds in one real second
PIECES = 12  # pieces of progress in each chunk


@pytest.fixture(scope="module")
def planned() -> Callable[[str, str], dict[str, Any]]:
    """Return a function that looks up a call of the shipped 8B recipe's plan by phase and role."""
    result = CliRunner().invoke(app, ["plan", "configs/8b/iterative_dpo.yaml", "--gpus", "8xH100", "--json"])
    assert result.exit_code == 0, result.output
    calls = json.loads(result.output)["calls"]
    return lambda phase, role: next(call for call in calls if (call["phase"], call["role"]) == (phase, role))


def scaled(**settings: Any) -> ClusterConfig:
    """Return the default settings of a cluster with its time limits divided by SCALE."""
    return ClusterConfig(
        progress_timeout_s=ClusterConfig().progress_timeout_s / SCALE, heartbeat_timeout_s=2, **settings
    )


@pytest.mark.long
def test_a_round_of_hours_ends_under_default_deadlines(
    planned: Callable[[str, str], dict[str, Any]], tmp_path: Path
) -> None:
    generate, reference = planned("generate", "rollout"), planned("score", "reference")
    reward, learn = planned("score", "reward"), planned("learn", "policy")
    chunks, updates = generate["count"], learn["count"]
    by_plan = chunks * generate["seconds"] + updates * learn["seconds"]
    assert by_plan > 2.5 * 3600, "the recipe's round is no longer one of hours: take another"
    durations = Durations(
        generate=generate["seconds"] / PIECES / SCALE,
        score=reward["seconds"] / PIECES / SCALE,
        reference=reference["seconds"] / PIECES / SCALE,
        update=learn["seconds"] / SCALE,
        num_updates=updates,
    )
    config = scaled()
    with stage(durations, config) as (cluster, gangs):
        started = time.monotonic()
        run(cluster, gangs, Rounds(count=1, prompts=PIECES * chunks, prompts_per_chunk=PIECES), tmp_path)
        took = time.monotonic() - started
    assert took > by_plan / SCALE > 4 * config.progress_timeout_s
    records = read_ledger(tmp_path / "ledger.jsonl")[0]
    assert [r.details["chunk"] for r in records if r.fact == Fact.scored] == list(range(chunks))


@pytest.mark.long
def test_a_stalled_engine_is_named_soon_after_its_limit(tmp_path: Path) -> None:
    durations = Durations(generate=0.05, score=0.05, reference=0.05, update=0.05, num_updates=4)
    config, rounds = scaled(), Rounds(count=1, prompts=48, prompts_per_chunk=8)
    with stage(durations, config, stalls_at=3) as (cluster, gangs):
        began = time.monotonic()
        with pytest.raises(DeadlineExceeded) as raised:
            run(cluster, gangs, rounds, tmp_path)
        ended = time.monotonic() - began
    assert (raised.value.role, raised.value.rank, raised.value.method) == ("rollout", 0, "generate")
    assert ended < 3 * 8 * durations.generate + config.progress_timeout_s + 10
    records = read_ledger(tmp_path / "ledger.jsonl")[0]
    assert [r.details["chunk"] for r in records if r.fact == Fact.scored] == [0, 1, 2], "what has ended is recorded"
