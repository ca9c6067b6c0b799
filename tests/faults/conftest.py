"""Fixture with the uninterrupted run of each algorithm.

Tests fork this process as if it were a machine, so nothing here may start a thread.
"""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parents[1] / "workers"))


import run_in_process


@pytest.fixture(scope="session", params=["grpo", "grpo-ahead", "ppo", "iterative-dpo"])
def world(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> run_in_process.World:
    torch.set_num_threads(1)
    return run_in_process.build(tmp_path_factory.mktemp(request.param), request.param)
