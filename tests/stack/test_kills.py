"""Kills of processes with the real engines: the run ends with the results of an uninterrupted one.

`make test-faults` kills more processes, at random times.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import kill_role
import pytest
from attempts import Run

from orchestrator.rundir.ledger import account, read_ledger

pytestmark = [pytest.mark.stack, pytest.mark.long]  # tests/faults/test_kills_on_ray.py is the short one


def test_a_driver_killed_before_its_first_checkpoint_and_a_killed_learner_change_nothing(
    finished: Callable[..., Run], qwen2: Path
) -> None:
    whole, run = finished("grpo", qwen2), Run(qwen2 / "runs" / "killed-twice")
    planned = [(("driver", 0), "SCORED 1", 0.0), (("policy", 0), "SCORED 3", 0.0)]
    recoveries = kill_role.run_with_kills(qwen2, "grpo", "killed-twice", planned)
    assert recoveries == ["resumed", "resumed"]
    assert kill_role.outcome(run) == kill_role.outcome(whole)
    accounted = account(read_ledger(run.path / "ledger.jsonl")[0])
    assert (accounted.lost, accounted.repeated) == ((), ())
    assert accounted.redone <= len(recoveries)
