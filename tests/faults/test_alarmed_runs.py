"""Effects of an alarm on a whole run: it pauses, stops, rolls back, or keeps a model from being written."""

from __future__ import annotations

import contextlib
import io
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import cpu_run
import pytest

from benchmarks import alarms
from orchestrator.cluster.base import Cluster
from orchestrator.cluster.local import LocalCluster
from orchestrator.config import RunConfig
from orchestrator.driver.driver import run_attempts
from orchestrator.driver.resume_overrides import apply_overrides
from orchestrator.errors import Alarmed, ResumeError
from orchestrator.rundir.audit import audit
from orchestrator.rundir.directory import RunDirectory
from orchestrator.rundir.ledger import Fact, read_ledger
from orchestrator.signals import StopRequest

pytestmark = pytest.mark.slow

STEPS = 6


def recipe(task: Path, output: Path, **rules: Any) -> RunConfig:
    """Return the config of six steps of GRPO.

    The KL exceeds 1e-4 from step 2 on, so the median of three rows exceeds it in step 3.
    """
    whole = cpu_run.config(task, output, "grpo", checkpoint={"every": 1, "keep": 4}, alarms=rules).model_dump(
        mode="json"
    )
    whole["algorithm"]["max_steps"] = STEPS
    return RunConfig.model_validate_json(json.dumps(whole))


def kl(action: str) -> dict[str, Any]:
    return {"kl_budget": {"max_kl": 1e-4, "window": 3, "action": action}}


def run(settings: RunConfig, start_cluster: Callable[..., Cluster] = cpu_run.local_cluster) -> RunDirectory:
    directory = RunDirectory.create(settings, "")
    with contextlib.redirect_stdout(io.StringIO()), StopRequest() as stop:
        run_attempts(settings, directory, stop, start_cluster=start_cluster)
    return directory


def run_until_alarm(settings: RunConfig) -> dict[str, Any]:
    """Run until an alarm ends the run, and return its exit.json."""
    with pytest.raises(Alarmed):
        run(settings)
    return RunDirectory.create(settings, "").read_exit() or {}


def facts(directory: RunDirectory, fact: Fact) -> list[int]:
    return [record.step for record in read_ledger(directory.ledger)[0] if record.fact == fact]


def test_a_warning_is_reported_and_changes_nothing_else(task: Path, tmp_path: Path) -> None:
    warned = run(recipe(task, tmp_path / "warned", **kl("warn")))
    weights, rows = cpu_run.outcome(warned.path)
    plain = cpu_run.outcome(run(recipe(task, tmp_path / "plain", kl_budget=None)).path)
    assert (weights, [{k: v for k, v in row.items() if k != "alarms/kl_budget"} for row in rows]) == plain
    assert [row["step"] for row in rows if "alarms/kl_budget" in row] == [3, 4, 5, 6]
    exit = warned.read_exit() or {}
    assert [(alarm["name"], alarm["step"], alarm["action"]) for alarm in exit["alarms"]] == [("kl_budget", 3, "warn")]
    assert facts(warned, Fact.alarm) == []


def test_a_paused_run_resumes_with_the_results_of_an_undisturbed_run(task: Path, tmp_path: Path) -> None:
    settings = recipe(task, tmp_path, **kl("pause"))
    exit = run_until_alarm(settings)
    assert (exit["cause"], exit["exit_code"], exit["step"]) == ("alarm_pause", 5, 3)
    assert exit["resume"].startswith("rlhf resume ")
    resumed = run(settings)
    assert cpu_run.outcome(resumed.path) == cpu_run.outcome(run(recipe(task, tmp_path / "plain", **kl("warn"))).path)
    assert (facts(resumed, Fact.attempt), facts(resumed, Fact.alarm)) == ([0, 3], [3])


def test_a_stopped_run_has_a_checkpoint_no_model_and_no_resume(task: Path, tmp_path: Path) -> None:
    settings = recipe(task, tmp_path, **kl("stop"))
    exit = run_until_alarm(settings)
    directory = RunDirectory.create(settings, "")
    assert (exit["cause"], exit["exit_code"], exit["step"], exit["resume"]) == ("alarm_stop", 5, 3, None)
    assert directory.checkpoint(3).is_dir()
    assert not directory.model.exists()
    with pytest.raises(ResumeError, match="alarm kl_budget stopped the run at step 3"):
        run(settings)


def test_a_run_rolls_back_once_and_stops_at_the_second_alarm(task: Path, tmp_path: Path) -> None:
    settings = recipe(task, tmp_path, **kl("roll_back"))
    exit = run_until_alarm(settings)
    directory = RunDirectory.create(settings, "")
    # The window of three rows begins before the first step, so the oldest checkpoint is used, that of step 1.
    assert facts(directory, Fact.attempt) == [0, 1]
    recorded = [r.details for r in read_ledger(directory.ledger)[0] if r.fact == Fact.alarm]
    assert [details["action"] for details in recorded] == ["roll_back", "stop"]
    assert (exit["cause"], exit["attempt"], exit["step"]) == ("alarm_stop", 2, 3)
    steps = [json.loads(line)["step"] for line in directory.metrics.read_text().splitlines()]
    assert steps == [1, 2, 3]


def test_gradients_that_explode_are_clipped_and_the_run_pauses(task: Path, tmp_path: Path) -> None:
    settings = recipe(task, tmp_path, gradient_explosion={"window": 3, "action": "pause"}, kl_budget=None)
    exploding = {**cpu_run.STARTS, "policy": alarms.exploding_from(5)}
    with pytest.raises(Alarmed, match="alarm gradient_explosion at step 6, gradient norm"):
        run(settings, lambda *_, **__: LocalCluster(exploding))
    directory = RunDirectory.create(settings, "")
    rows = cpu_run.rows(directory.path)
    assert [row["grad_norm"] > 1e4 for row in rows] == [False] * 4 + [True] * 2
    # Clipped to a norm of 1, the two exploding updates move the policy about as far as ordinary ones.
    _, plain = cpu_run.outcome(run(recipe(task, tmp_path / "plain", kl_budget=None)).path)
    assert rows[-1]["objective/kl"] < 2 * plain[-1]["objective/kl"]
    assert directory.checkpoint(6).is_dir()


def test_an_alarm_inside_a_round_pauses_the_run_after_the_round_and_once(task: Path, tmp_path: Path) -> None:
    rules = {"gradient_explosion": {"window": 3, "action": "pause"}, "kl_budget": None}
    whole = cpu_run.config(task, tmp_path, "iterative-dpo-updates", alarms=rules).model_dump(mode="json")
    whole["algorithm"] |= {"num_generations": 8, "pairs": {**cpu_run.PAIRS, "per_prompt": 4}}
    settings = RunConfig.model_validate_json(json.dumps(whole))
    exploding = {**cpu_run.STARTS, "policy": alarms.exploding_from(2)}
    with pytest.raises(Alarmed, match="alarm gradient_explosion at step 2, gradient norm"):
        run(settings, lambda *_, **__: LocalCluster(exploding))
    directory = RunDirectory.create(settings, "")
    updates = [json.loads(line) for line in (directory.path / "updates.jsonl").read_text().splitlines()]
    assert [row["step"] for row in updates].count(2) > 2, "the round is learned to its end"
    assert [row.get("alarms/gradient_explosion") for row in cpu_run.rows(directory.path)] == [None, 1.0]
    # The alarm lasts, and is restored from the updates: the resumed run does not pause again.
    run(settings, lambda *_, **__: LocalCluster(exploding))
    exit = directory.read_exit() or {}
    assert (exit["cause"], facts(directory, Fact.alarm)) == ("completed", [2])
    assert [(alarm["name"], alarm["step"]) for alarm in exit["alarms"]] == [("gradient_explosion", 2)]


def guarded(task: Path, output: Path, pattern: str, rounds: int = 2, **gate: Any) -> RunConfig:
    """Return a config with rounds of DPO for the letter a, behind a safety gate.

    `pattern` defines a refusal. The prompts of the task serve as harmful prompts.
    """
    prompts = str(task / "prompts.jsonl")
    settings = cpu_run.config(
        task,
        output,
        "iterative-dpo",
        data={"prompts": prompts, "eval_harmful": prompts},
        evaluation={"every": 1, "refusal": {"type": "refusal", "patterns": [pattern]}},
        alarms={"safety_gate": gate},
    ).model_dump(mode="json")
    settings["algorithm"] |= {
        "max_steps": rounds, "prompts_per_step": 16, "num_generations": 8, "pairs": {"per_prompt": 4},
        "learning_rate": 2e-2,
    }  # fmt: skip
    return RunConfig.model_validate_json(json.dumps(settings))


def promotions(directory: RunDirectory) -> list[tuple[int, bool]]:
    records = read_ledger(directory.ledger)[0]
    return [(r.step, r.details["promoted"]) for r in records if r.fact == Fact.promotion]


LOST = "^[^a]"  # behaviour that the rounds unlearn: a completion that does not begin with a


def test_a_drop_in_refusals_stops_the_run_and_the_model_is_not_promoted(task: Path, tmp_path: Path) -> None:
    settings = guarded(task, tmp_path, LOST)
    exit = run_until_alarm(settings)
    directory = RunDirectory.create(settings, "")
    rows = [json.loads(line) for line in directory.metrics.read_text().splitlines()]
    assert rows[0]["eval/refusal"] - rows[-1]["eval/refusal"] > 0.02
    assert (rows[-1]["alarms/safety_gate"], rows[-1]["eval/harmful_prompts"]) == (1.0, 16.0)
    assert (exit["cause"], exit["step"], exit["resume"]) == ("alarm_stop", rows[-1]["step"], None)
    assert exit["promotion"]["promoted"] is False
    assert exit["promotion"]["saw"].startswith("eval/refusal fell from ")
    assert promotions(directory) == [(rows[-1]["step"], False)]
    assert not directory.model.exists()


def test_a_gate_that_only_warns_lets_training_continue_but_blocks_the_model(task: Path, tmp_path: Path) -> None:
    settings = guarded(task, tmp_path, LOST, action="warn")
    exit = run_until_alarm(settings)
    directory = RunDirectory.create(settings, "")
    assert (exit["cause"], exit["exit_code"], exit["step"]) == ("alarm_stop", 5, 2)
    assert "the model is not promoted: eval/refusal fell" in exit["message"]
    assert (promotions(directory), directory.model.exists()) == ([(2, False)], False)
    # A user who wants the model nevertheless removes the gate.
    with contextlib.redirect_stdout(io.StringIO()), StopRequest() as stop:
        without_gate = apply_overrides(directory, ["alarms.safety_gate=null"])
        run_attempts(without_gate, directory, stop, start_cluster=cpu_run.local_cluster)
    assert (directory.read_exit() or {})["cause"] == "completed"
    assert directory.model.is_dir()
    assert all(finding.good for finding in audit(directory))


def test_a_model_that_kept_its_refusals_is_promoted(task: Path, tmp_path: Path) -> None:
    directory = run(guarded(task, tmp_path, "^never$", rounds=1))
    assert promotions(directory) == [(1, True)]
    assert (directory.read_exit() or {})["promotion"] == {
        "promoted": True, "saw": "eval/refusal stayed at 0 (allowed: 0.02)",
    }  # fmt: skip
    assert directory.model.is_dir()


@pytest.mark.parametrize(("metric", "written"), [("eval/rewards/without_a/mean", False), ("eval/reward", True)])
def test_a_gate_that_is_shut_after_the_last_step_blocks_the_model(tmp_path: Path, metric: str, written: bool) -> None:
    # The reward is for the letter a. The evaluation after the first one follows the last of ten steps.
    (proxy,) = (case for case in alarms.CASES if case.name == "safety_gate")
    gate = {"alarms": {"safety_gate": {"metrics": [metric]}}}
    case = replace(proxy, algorithm={**proxy.algorithm, "max_steps": 10}, changes=gate)
    rows, exit = alarms.rows_of(case, 0, tmp_path)
    change = rows[-1]["eval/rewards/without_a/mean"] - rows[0]["eval/rewards/without_a/mean"]
    assert (rows[-1]["step"], change < -0.02) == (10, True)
    assert exit["cause"] == ("completed" if written else "alarm_stop")
    assert (tmp_path / "run" / "model").is_dir() is written
