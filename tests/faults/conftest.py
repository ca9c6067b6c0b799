"""Fixture with the uninterrupted run of each algorithm.

Tests fork this process as if it were a machine, so nothing here may start a thread.
"""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parents[1] / "workers"))


import cpu_run
import run_in_process


@pytest.fixture(scope="session", params=["grpo", "grpo-ahead", "ppo", "iterative-dpo"])
def world(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> run_in_process.World:
    torch.set_num_threads(1)
    return run_in_process.build(tmp_path_factory.mktemp(request.param), request.param)


@pytest.fixture(scope="module")
def task(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the directory of a model and its prompts."""
    torch.set_num_threads(1)
    directory = tmp_path_factory.mktemp("task")
    cpu_run.write_task(directory)
    return directory
