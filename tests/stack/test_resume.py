"""Runs that are stopped by a signal: they end cleanly and resume to the results of an uninterrupted run."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest
from attempts import RECIPES, Run
from processes import Command

pytestmark = pytest.mark.stack

Finished = Callable[..., Run]


def test_ctrl_c_ends_a_run_after_its_step_and_resume_ends_where_it_would_have_ended(
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


def test_sigterm_ends_a_run_after_its_round_and_resume_ends_where_it_would_have_ended(
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
