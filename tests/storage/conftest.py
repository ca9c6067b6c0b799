"""Paths and the task of the runs in one process that the tests on object storage give a storage."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

for folder in ("workers", "faults"):
    sys.path.append(str(Path(__file__).parents[1] / folder))

import cpu_run  # noqa: E402 - on the path set above


@pytest.fixture(scope="module")
def task(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the directory of a model and its prompts."""
    directory = tmp_path_factory.mktemp("task")
    cpu_run.write_task(directory)
    return directory
