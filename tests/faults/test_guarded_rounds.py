"""Guards on the drift before a round, in whole runs: a round is taken back once, or the run ends."""

from __future__ import annotations

import contextlib
import io
from pathlib import Path
from typing import Any

import cpu_run
import pytest
from test_alarmed_runs import facts, run, run_until_alarm

from orchestrator.config import RunConfig
from orchestrator.driver.driver import run_attempts
from orchestrator.driver.resume_overrides import apply_overrides
from orchestrator.errors import Alarmed
from orchestrator.rundir.directory import RunDirectory
from orchestrator.rundir.ledger import Fact, read_ledger
from orchestrator.signals import StopRequest
from workers.files.rollout_files import StoredFile
from workers.types import Z95

pytestmark = pytest.mark.slow

LOW, HIGH = 1e-6, 1e6  # KL limits that two rounds exceed, and that nothing exceeds


def rounds(task: Path, output: Path, **limits: float) -> RunConfig:
    """Return the config of three rounds of iterative DPO against the initial model."""
    reference = {"refresh": "never", **limits}
    return cpu_run.config(task, output, "iterative-dpo", reference=reference, checkpoint={"every": 1, "keep": 4})


def sampled(directory: RunDirectory, step: int) -> list[str]:
    """Return the hashes of the files of each sampling of the first chunk of a step, in order."""
    records = read_ledger(directory.ledger)[0]
    of_step = [r.details for r in records if r.fact == Fact.generated and r.step == step and not r.details["recalled"]]
    return [StoredFile(**d["files"][0]).sha256 for d in of_step if d["chunk"] == 0]


def alarms_of(directory: RunDirectory) -> list[tuple[str, str, int]]:
    found: list[dict[str, Any]] = [dict(r.details) for r in read_ledger(directory.ledger)[0] if r.fact == Fact.alarm]
    return [(d["alarm"]["name"], d["action"], d["alarm"]["step"]) for d in found]


def lower_bounds(directory: RunDirectory) -> list[float]:
    """Return the lower bound of the KL before each round."""
    return [row["drift/kl"] - Z95 * row["drift/kl_error"] for row in cpu_run.rows(directory.path) if "drift/kl" in row]


def test_a_round_that_went_too_far_is_taken_back_once_and_repeated_with_other_prompts(
    task: Path, tmp_path: Path
) -> None:
    _, second, third = lower_bounds(run(rounds(task, tmp_path / "whole")))
    assert third > max(second, 0), "the policy must go on moving away"
    settings = rounds(task, tmp_path / "guarded", roll_back_kl=max(second, LOW) + LOW)
    directory = RunDirectory.create(settings, "")
    with contextlib.suppress(Alarmed):
        run(settings)
    alarms = alarms_of(directory)
    assert alarms[0] == ("reference_drift", "roll_back", 2)
    assert alarms[1:] in ([], [("reference_drift", "stop", 2)]), "once"
    before, after = sampled(directory, 2)[:2]
    assert before != after


def test_the_first_round_cannot_be_taken_back_so_the_run_ends(task: Path, tmp_path: Path) -> None:
    settings = rounds(task, tmp_path, roll_back_kl=LOW)
    exit = run_until_alarm(settings)
    assert (exit["cause"], exit["exit_code"]) == ("alarm_stop", 5)
    assert "before the next round: KL" in exit["message"]
    assert alarms_of(RunDirectory.create(settings, "")) == [("reference_drift", "stop", 1)]


def test_a_policy_beyond_the_limit_ends_the_run_which_resumes_with_a_higher_one(task: Path, tmp_path: Path) -> None:
    settings = rounds(task, tmp_path / "aborted", abort_kl=LOW)
    exit = run_until_alarm(settings)
    directory = RunDirectory.create(settings, "")
    assert (exit["cause"], exit["exit_code"]) == ("alarm_stop", 5)
    assert "abort_kl" in exit["message"]
    assert not directory.model.exists()
    done = facts(directory, Fact.committed)
    raised = apply_overrides(directory, [f"reference.abort_kl={HIGH}"])
    with contextlib.redirect_stdout(io.StringIO()), StopRequest() as stop:
        run_attempts(raised, directory, stop, start_cluster=cpu_run.local_cluster)
    assert facts(directory, Fact.committed) == [1, 2, 3]
    assert 0 < len(done) < 3
    unguarded = run(rounds(task, tmp_path / "whole"))
    assert cpu_run.outcome(directory.path) == cpu_run.outcome(unguarded.path)
