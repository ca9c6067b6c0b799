"""`rlhf why RUN`, for every way in which a run can be found."""

from __future__ import annotations

from pathlib import Path

import pytest

from orchestrator.errors import FleetExhausted, WorkerFailed
from orchestrator.rundir.directory import RunDirectory
from orchestrator.rundir.incidents import Incident, first_cause, read_incidents, write_incident
from orchestrator.rundir.ledger import Fact, Ledger
from orchestrator.rundir.why import explain


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> RunDirectory:
    """In its second step, with a checkpoint of the first."""
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


def test_of_a_worker_that_failed(run: RunDirectory) -> None:
    (run.logs(1) / "reward-0.log").write_text("Traceback …")
    fail(run, WorkerFailed("reward", 0, "Traceback:\n  File …\nZeroDivisionError: division by zero", pid=4711))
    assert explain(run) == [
        "runs/grpo ended in attempt 1, 1 step done (exit code 4)",
        "  worker_failed: reward rank 0 failed: ZeroDivisionError: division by zero",
        "    why: its own traceback stands below",
        "  its own words: runs/grpo/logs/attempt-1/reward-0.log",
        "go on with: rlhf resume runs/grpo",
    ]


def test_of_what_was_done_before_it_gave_up(run: RunDirectory) -> None:
    death = WorkerFailed("rollout", 1, "its process (pid 4711) died: killed", pid=4711)
    done = Incident(attempt=1, step=1, what=death.problems[0].what, action="restarted", detail="3 of 3")
    write_incident(run.incidents, done)
    fail(run, FleetExhausted(death, "generate", restarts=3, of_this_call=4))
    told = "\n".join(explain(run))
    assert "fleet_exhausted: rollout was started again 3 times and rank 1 died again, during `generate`" in told
    assert "the same call of `generate` ended it 4 times: what it was given may be the cause" in told
    assert (
        "attempt 1, after step 1: rollout rank 1 failed: its process (pid 4711) died: killed → restarted (3 of 3)"
        in told
    )


def test_of_a_run_that_is_alive(run: RunDirectory) -> None:
    with run.held():
        told = explain(run)
    assert len(told) == 1
    assert told[0].startswith("runs/grpo is alive: process ")
    assert "in attempt 1, 1 step done; the last thing it wrote down was just now" in told[0]
    assert run.holder() is None


def test_of_a_run_that_was_killed_without_a_word(run: RunDirectory) -> None:
    told = explain(run)
    assert told[0].startswith("runs/grpo was killed without a word in attempt 1, 1 step done")
    assert told[-2:] == ["  logs: runs/grpo/logs/attempt-1", "go on with: rlhf resume runs/grpo"]


def test_of_a_run_that_is_complete(run: RunDirectory) -> None:
    run.model.mkdir()
    run.write_exit(cause="completed", message="all steps done", exit_code=0, attempt=1, step=1)
    assert explain(run) == ["runs/grpo is complete: 1 step, in 1 attempt", "  model: runs/grpo/model"]


def test_of_a_run_without_a_checkpoint(tmp_path: Path) -> None:
    directory = RunDirectory(tmp_path / "early")
    directory.path.mkdir()
    assert explain(directory)[-1] == "nothing was begun: run the recipe again"
    with Ledger.open(directory.ledger) as ledger:
        ledger.append(Fact.attempt, attempt=1, step=0)
    told = explain(directory)
    assert told[0].startswith(f"{directory.path} was killed without a word in attempt 1, 0 steps done")
    assert told[-1] == f"go on with: {directory.resume_command}", "from its beginning"


def test_an_incident_that_was_cut_off_does_not_hide_the_others(run: RunDirectory) -> None:
    write_incident(run.incidents, Incident(attempt=1, step=1, what="first", action="restarted"))
    with run.incidents.open("a") as file:
        file.write('{"attempt": 1, "st')
    assert [incident.what for incident in read_incidents(run.incidents)] == ["first"]
