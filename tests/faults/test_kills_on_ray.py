"""Processes of a run on real Ray are killed or stopped at random. Here one run each; `make test-faults` does more."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path

import cpu_run
import hangs
import kills
import pytest
from stage import Stage

from orchestrator.run.ledger import account, read_ledger

pytestmark = pytest.mark.stack


@pytest.fixture(scope="module")
def stage(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stage]:
    directory = tmp_path_factory.mktemp("stage")
    cpu_run.write_task(directory)
    with Stage.open(directory) as opened:
        yield opened


@pytest.fixture(scope="module")
def task(stage: Stage) -> Path:
    return Path(stage.socket).parent


def test_a_run_that_is_killed_again_and_again_ends_as_if_nothing_had_happened(stage: Stage, task: Path) -> None:
    algorithm = "iterative-dpo"
    whole, killed = (kills.configuration(task, task / name, algorithm) for name in ("whole", "killed"))
    kills.play(stage, whole, algorithm, random.Random(), num_kills=0)
    played = kills.play(stage, killed, algorithm, random.Random(1), num_kills=3)
    directory = task / "killed" / killed.name
    assert played.kills
    assert not played.left_behind
    assert cpu_run.outcome(directory) == cpu_run.outcome(task / "whole" / whole.name)
    told = account(read_ledger(directory / "ledger.jsonl")[0])
    assert told.lost == told.repeated == ()
    assert all(steps <= 1 for steps in kills.redone_by_attempt(directory))


def test_a_process_that_is_stopped_is_told_of(stage: Stage, task: Path) -> None:
    assert hangs.hang(stage, task, "grpo", seed=0) < hangs.DEADLINE_S + 10
