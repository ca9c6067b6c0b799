"""Runs on object storage: what a machine without the run directory resumes from."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from attempts import Run
from processes import Command

from orchestrator.rundir.directory import RunDirectory

pytestmark = pytest.mark.stack

Finished = Callable[..., Run]
RECIPES = Path(__file__).parent / "recipes"


def test_a_run_resumes_from_storage_alone(finished: Finished, qwen2: Path, tmp_path: Path) -> None:
    whole = finished("drifting", qwen2)
    storage = f"file://{tmp_path}/bucket"
    stopped = Run(qwen2 / "runs" / "stored")
    with Command("run", str(RECIPES / "drifting.yaml"), "name=stored", f"storage={storage}", cwd=qwen2) as command:
        command.read_until("round 2/6")
        command.terminate()
        assert command.exit_code() == 143
        assert command.leaves_nothing_behind()
    shutil.rmtree(stopped.path)
    with Command("resume", f"{storage}/stored", "output_dir=elsewhere", cwd=qwen2) as command:
        assert command.exit_code() == 0, command.output
    resumed = Run(qwen2 / "elsewhere" / "stored")
    assert RunDirectory(resumed.path).is_complete
    assert resumed.weights_digest == whole.weights_digest
