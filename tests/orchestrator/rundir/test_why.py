"""Output of `rlhf why RUN`, for every state of a run."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest

from orchestrator.errors import FleetExhausted, WorkerFailed
from orchestrator.rundir.directory import RunDirectory
from orchestrator.rundir.incidents import Incident, first_cause, read_incidents, write_incident
from orchestrator.rundir.ledger import Fact, Ledger
from orchestrator.rundir.why import explain


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> RunDirectory:
    """Create a run that is in its second step, with a checkpoint of the first."""
    monkeypatch.chdir(tmp_path)
    directory = RunDirectory(tmp_path / "runs" / "grpo")
    directory.path.mkdir(parents=True)
    with Ledger.open(directory.ledger) as ledger:
        attempt = directory.start_attempt()
        ledger.append(Fact.attempt, attempt=attempt, step=0)
        for fact in (Fact.planned, Fact.trained, Fact.committed, Fact.checkpoint):
            ledger.append(fact, attempt=attempt, step=1)
        ledger.append(Fact.planned, attempt=attempt, step=2)
    return directory


def fail(run: RunDirectory, error: WorkerFailed, attempt: int = 1) -> None:
    run.write_exit(
        cause=error.cause,
        message=str(error),
        exit_code=error.exit_code,
        attempt=attempt,
        step=1,
        first_cause=first_cause(error, attempt=attempt),
    )


def test_a_worker_that_failed(run: RunDirectory) -> None:
    (run.logs(1) / "reward-0.log").write_text("Traceback …")
    fail(run, WorkerFailed("reward", 0, "Traceback:\n  File …\nZeroDivisionError: division by zero", pid=4711))
    assert explain(run) == [
        "runs/grpo ended in attempt 1, 1 step done (exit code 4)",
        "  worker_failed: reward rank 0 failed: ZeroDivisionError: division by zero",
        "    why: its traceback is below",
        "  log: runs/grpo/logs/attempt-1/reward-0.log",
        "resume with: rlhf resume runs/grpo",
    ]


def test_incidents_before_the_attempt_ended(run: RunDirectory) -> None:
    death = WorkerFailed("rollout", 1, "its process (pid 4711) died: killed", pid=4711)
    done = Incident(attempt=1, step=1, what=death.problems[0].what, action="restarted", detail="3 of 3")
    write_incident(run.incidents, done)
    fail(run, FleetExhausted(death, "generate", restarts=3, of_this_call=4))
    text = "\n".join(explain(run))
    assert "fleet_exhausted: rollout was restarted 3 times and rank 1 failed again, during `generate`" in text
    assert "the same call of `generate` failed 4 times: its input may be the cause" in text
    assert (
        "attempt 1, after step 1: rollout rank 1 failed: its process (pid 4711) died: killed → restarted (3 of 3)"
        in text
    )


def test_a_run_that_is_running(run: RunDirectory) -> None:
    with run.held():
        lines = explain(run)
    assert len(lines) == 1
    assert lines[0].startswith("runs/grpo is running: process ")
    assert "in attempt 1, 1 step done; last record in the ledger: just now" in lines[0]
    assert run.holder() is None


def test_a_run_that_was_killed(run: RunDirectory) -> None:
    lines = explain(run)
    assert lines[0].startswith("runs/grpo was killed in attempt 1, 1 step done")
    assert lines[-2:] == ["  logs: runs/grpo/logs/attempt-1", "resume with: rlhf resume runs/grpo"]


def test_a_run_that_is_complete(run: RunDirectory) -> None:
    run.model.mkdir()
    run.write_exit(cause="completed", message="all steps done", exit_code=0, attempt=1, step=1)
    assert explain(run) == ["runs/grpo is complete: 1 step, in 1 attempt", "  model: runs/grpo/model"]


def test_a_run_without_a_checkpoint(tmp_path: Path) -> None:
    directory = RunDirectory(tmp_path / "early")
    directory.path.mkdir()
    assert explain(directory)[-1] == "nothing to resume: run the recipe again"
    with Ledger.open(directory.ledger) as ledger:
        ledger.append(Fact.attempt, attempt=1, step=0)
    lines = explain(directory)
    assert lines[0].startswith(f"{directory.path} was killed in attempt 1, 0 steps done")
    assert lines[-1] == f"resume with: {directory.resume_command}", "from its beginning"


def test_a_run_that_generated_a_data_set(run: RunDirectory) -> None:
    run.data.mkdir()
    run.write_exit(cause="completed", message="all steps done", exit_code=0, attempt=1, step=1)
    assert explain(run)[1] == "  data set: runs/grpo/data"


def test_an_incomplete_incident_is_skipped(run: RunDirectory) -> None:
    write_incident(run.incidents, Incident(attempt=1, step=1, what="first", action="restarted"))
    with run.incidents.open("a") as file:
        file.write('{"attempt": 1, "st')
    assert [incident.what for incident in read_incidents(run.incidents)] == ["first"]


def test_a_run_in_the_middle_of_a_round(run: RunDirectory) -> None:
    shown = {"text": "1,536 of 8,192 prompts  12/s  9:14 left", "done": 1536, "total": 8192}
    body = {"schema": 1, "step": 2, "step_word": "round", "num_steps": 3, "time": time.time(), "phases": {}}
    with run.held():
        run.progress.write_text(json.dumps(body | {"phases": {"rollout": shown}}))
        assert explain(run)[1:] == [
            "  round 2 of 3, just now",
            "    rollout: 1,536 of 8,192 prompts  12/s  9:14 left",
        ]
        run.progress.write_text("[]")
        assert len(explain(run)) == 1
    run.progress.write_text(json.dumps(body))  # of a driver that was killed
    assert not any("round 2" in line for line in explain(run))
