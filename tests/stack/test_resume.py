"""Runs that are asked to stop: they end cleanly and resume to the results of an uninterrupted run."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest
from attempts import RECIPES, Run
from processes import Command, eventually

from orchestrator.rundir.directory import RunDirectory
from orchestrator.rundir.stop import request_stop, wait_for_end

pytestmark = pytest.mark.stack

Finished = Callable[..., Run]


@pytest.mark.long
def test_ctrl_c_ends_a_run_after_its_update_and_resume_ends_where_it_would_have_ended(
    finished: Finished, qwen2: Path
) -> None:
    whole = finished("ppo", qwen2)
    stopped = Run(qwen2 / "runs" / "interrupted")
    with Command("run", str(RECIPES / "ppo.yaml"), "name=interrupted", cwd=qwen2) as command:
        command.read_until("step 1/6")
        command.press_ctrl_c()
        assert command.exit_code() == 130
        assert command.leaves_nothing_behind()
    assert_stopped(stopped, command.output, cause="user", exit_code=130)
    resume(stopped, command.output)
    assert_equal(stopped, whole)


@pytest.mark.long
def test_sigterm_ends_a_run_after_its_update_and_resume_ends_where_it_would_have_ended(
    finished: Finished, qwen2: Path
) -> None:
    whole = finished("drifting", qwen2)
    stopped = Run(qwen2 / "runs" / "preempted")
    with Command("run", str(RECIPES / "drifting.yaml"), "name=preempted", cwd=qwen2) as command:
        command.read_until("round 2/6")
        command.terminate()
        assert command.exit_code() == 143
        assert command.leaves_nothing_behind()
    assert_stopped(stopped, command.output, cause="preempted", exit_code=143)
    resume(stopped, command.output)
    assert_equal(stopped, whole)


def test_two_sigterms_to_every_process_end_a_run_after_the_update_it_is_in(finished: Finished, qwen2: Path) -> None:
    """Stop in the first step, of 16 updates, under a supervisor. No attempt follows."""
    many = ("algorithm.num_ppo_epochs=8", "algorithm.max_steps=2")
    whole = finished("ppo", qwen2, "name=many", *many)
    stopped = Run(qwen2 / "runs" / "terminated")
    arguments = ["run", str(RECIPES / "ppo.yaml"), "name=terminated", *many, "--attempts", "3"]
    with Command(*arguments, cwd=qwen2) as command:
        assert eventually(lambda: updates(stopped) > 0 or command.has_ended(), within_s=180)
        command.terminate_all()
        command.terminate_all()
        assert command.exit_code() == 143, command.output
        assert command.leaves_nothing_behind()
    assert (stopped.exit["cause"], stopped.exit["attempt"], stopped.exit["step"]) == ("preempted", 1, 0)
    assert [path.name for path in (stopped.path / "checkpoints").iterdir()] == [f"step-0-update-{updates(stopped)}"]
    resume(stopped, command.output)
    assert_equal(stopped, whole)


@pytest.mark.long
def test_a_run_is_stopped_by_a_file_from_another_process(finished: Finished, qwen2: Path) -> None:
    whole = finished("ppo", qwen2)
    stopped = Run(qwen2 / "runs" / "asked")
    with Command("run", str(RECIPES / "ppo.yaml"), "name=asked", cwd=qwen2) as command:
        command.read_until("step 1/6")
        directory = RunDirectory.open(stopped.path)
        request_stop(directory, by="alice on node-3")
        ended = wait_for_end(directory, 60)
        assert ended is not None
        assert ended["stop"]["by"] == "alice on node-3"
        assert command.exit_code() == 143
    assert_stopped(stopped, command.output, cause="user", exit_code=143)
    assert "stopped by alice on node-3" in command.output
    resume(stopped, command.output)
    assert_equal(stopped, whole)


def updates(run: Run) -> int:
    """Return the number of optimiser updates that are recorded."""
    path = run.path / "updates.jsonl"
    return len(path.read_text().splitlines()) if path.exists() else 0


def test_sigterm_while_ray_starts_is_reported_as_a_signal(qwen2: Path) -> None:
    stopped = Run(qwen2 / "runs" / "early")
    with Command("run", str(RECIPES / "base.yaml"), "name=early", cwd=qwen2) as command:
        command.read_until("starting Ray")
        command.terminate()
        assert command.exit_code() == 143
        assert command.leaves_nothing_behind()
    assert (stopped.exit["cause"], stopped.exit["step"]) == ("preempted", 0)
    assert "resume with: rlhf resume runs/early" in command.output


def assert_stopped(run: Run, output: str, *, cause: str, exit_code: int, steps: int = 6) -> None:
    assert (run.exit["cause"], run.exit["exit_code"]) == (cause, exit_code)
    steps_done = run.exit["step"]
    assert 1 <= steps_done < steps, "it was stopped too late to see anything"
    assert run.facts[-1] == f"CHECKPOINT {steps_done}"
    assert f"rlhf resume runs/{run.path.name}" in output
    assert run.exit["resume"] == f"rlhf resume runs/{run.path.name}"
    assert "Traceback" not in output


def resume(run: Run, output: str) -> None:
    """Resume a run with the command that it printed."""
    printed = re.search(r"rlhf (resume \S+)", output)
    assert printed is not None
    with Command(*printed[1].split(), cwd=run.path.parent.parent) as command:
        assert command.exit_code() == 0, command.output
        assert command.leaves_nothing_behind()
    assert run.exit["attempt"] == 2
    assert not list(Path("/dev/shm").glob(f"rlhf-{run.path.name}-*"))


def assert_equal(resumed: Run, whole: Run) -> None:
    assert resumed.metrics_without_clocks == whole.metrics_without_clocks
    assert resumed.weights_digest == whole.weights_digest
    committed = [fact for fact in resumed.facts if fact.startswith("COMMITTED")]
    assert committed == [fact for fact in whole.facts if fact.startswith("COMMITTED")]
