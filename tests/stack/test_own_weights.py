"""Weights of families that are hard to publish reach the engine, and what does not reach it is refused."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import tiny_models

HERE = Path(__file__).parent
pytestmark = pytest.mark.stack


def run(directory: Path, *further: str) -> subprocess.CompletedProcess[str]:
    """In a process of its own: there is one engine in a process, for life."""
    paths = os.pathsep.join(map(str, (HERE.parents[1], HERE.parent)))
    command = [sys.executable, str(HERE / "own_weights.py"), str(directory), *further]
    return subprocess.run(command, capture_output=True, text=True, env=os.environ | {"PYTHONPATH": paths}, check=False)


@pytest.mark.parametrize("family", ["qwen3_moe", "gemma2"])  # experts that are packed; a head that has no name
def test_the_engine_answers_as_the_model_before_and_after_every_publication(family: str, tmp_path: Path) -> None:
    done = run(tiny_models.write(tmp_path, family))
    assert done.returncode == 0, done.stderr[-2000:]
    gaps = json.loads(done.stdout.splitlines()[-1])
    assert len(gaps) == 4
    assert max(gaps) < 1e-4, gaps


def test_an_engine_in_two_parts_answers_as_the_model(tmp_path: Path) -> None:
    """Tensor-parallel workers are processes of the engine's own, each with its half of every layer."""
    done = run(tiny_models.write(tmp_path, "qwen3", num_key_value_heads=2), "2")
    assert done.returncode == 0, done.stderr[-2000:]
    gaps = json.loads(done.stdout.splitlines()[-1])
    assert len(gaps) == 4
    assert max(gaps) < 1e-4, gaps


def test_a_family_that_the_engine_takes_no_weights_of_is_refused_before_it_is_loaded(tmp_path: Path) -> None:
    done = run(tiny_models.write(tmp_path, "gpt_oss"))
    assert done.returncode != 0
    assert "vLLM's GptOssForCausalLM keeps its old experts when new weights arrive" in done.stderr
