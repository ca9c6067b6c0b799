"""Checks on one GPU, without a network: skipped where there is none, before torch is imported.

Figures go to the file that RLHF_GPU_FIGURES names, which `make gpu-check` prints as a table.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest
from gpu.process import run

HERE = Path(__file__).parent


def why_not() -> str:
    """Return the reason for which no check can run here; empty if they can."""
    if not any(Path(device).exists() for device in ("/dev/nvidiactl", "/dev/kfd")):
        return "no CUDA device"
    import torch

    return "" if torch.cuda.is_available() else "no CUDA device that torch can use: torch.cuda.is_available() is false"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    own = [item for item in items if HERE in item.path.parents]
    reason = why_not() if own else ""
    for item in own:
        item.add_marker(pytest.mark.gpu)
        if reason:
            item.add_marker(pytest.mark.skip(reason=reason))


Measure = Callable[..., None]


@pytest.fixture
def measure() -> Measure:
    """Return a function that runs a check, records its figures, and fails if one is outside of its limits."""

    def measured(script: str, check: str, **settings: object) -> None:
        file = os.environ.get("RLHF_GPU_FIGURES")
        figures = run(script, check, "cuda", Path(file) if file else None, **settings)
        assert figures, "nothing was measured"
        assert [figure for figure in figures if figure.fails] == []

    return measured
