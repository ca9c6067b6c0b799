"""Time that a run needs to stop: update, what is sampled ahead, evaluation and checkpoint."""

from __future__ import annotations

import json
import math
from dataclasses import replace

import pytest
from shipped import CONFIGS

from orchestrator.cli.main import main
from orchestrator.config import load
from orchestrator.plan.calls import Call
from orchestrator.plan.gpus import GPUS
from orchestrator.plan.grace import stop_seconds, stop_time
from orchestrator.plan.plan import Plan, make_plan

H100 = GPUS["H100"]


def planned(recipe: str, *overrides: str) -> Plan:
    loaded = load(CONFIGS / recipe, overrides)
    return make_plan(loaded.stages[-1], H100, before=loaded.before(loaded.stages[-1]), alternatives=False)


def call(phase: str, role: str, seconds: float) -> Call:
    return Call(phase=phase, role=role, what="", seconds=seconds, limit_s=1800.0)


def test_the_parts_are_added_up_with_a_margin() -> None:
    calls = (
        call("learn", "policy", 40.0),
        call("learn", "critic", 30.0),  # at the same time
        call("publish", "policy", 5.0),
        call("checkpoint", "policy", 20.0),
        call("checkpoint", "critic", 10.0),  # on the same storage
        call("generate", "rollout", 600.0),  # given up
    )
    plan = replace(planned("8b/ppo.yaml", "evaluation.every=null"), calls=calls)
    assert plan.config.max_staleness == 0
    # 10 s to notice, and twice (40 + 5 of the update, 20 + 10 of the checkpoint)
    assert stop_seconds(plan) == 10 + 2 * (40 + 5 + 20 + 10)


def test_an_evaluation_that_may_be_due_is_waited_for() -> None:
    without, due = planned("8b/grpo.yaml", "evaluation.every=null"), planned("8b/grpo.yaml", "evaluation.every=10")
    assert due.evaluation is not None
    assert stop_time(without).evaluate_s == 0
    assert stop_seconds(due) == pytest.approx(stop_seconds(without) + 2 * due.evaluation.seconds)


def test_a_checkpoint_waits_for_what_is_sampled_ahead() -> None:
    synchronous = planned("8b/grpo.yaml", "evaluation.every=null", "max_staleness=0")
    ahead = planned("8b/grpo.yaml", "evaluation.every=null", "max_staleness=1")
    generate_s = ahead.time.busy["generate"]["rollout"]
    assert stop_seconds(ahead) == pytest.approx(stop_seconds(synchronous) + 2 * generate_s)


def test_a_checkpoint_that_goes_to_object_storage_is_uploaded_before_the_run_ends() -> None:
    calls = (call("learn", "policy", 40.0), call("checkpoint", "policy", 20.0))
    plan = replace(planned("8b/ppo.yaml", "evaluation.every=null", "storage=s3://bucket/runs"), calls=calls)
    assert stop_seconds(plan) == 10 + 2 * (40 + 20 + 20)


def test_an_update_that_never_ends_leaves_no_time_to_stop() -> None:
    plan = replace(planned("8b/grpo.yaml"), calls=(call("learn", "policy", math.inf),))
    assert stop_seconds(plan) == math.inf


def test_the_plan_says_how_long_a_stop_takes(capsys: pytest.CaptureFixture[str]) -> None:
    recipe = str(CONFIGS / "8b/grpo.yaml")
    assert main(["plan", recipe]) == 0
    assert "a stop: within " in capsys.readouterr().out
    assert main(["plan", recipe, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["stop_s"] == pytest.approx(stop_seconds(planned("8b/grpo.yaml")))
