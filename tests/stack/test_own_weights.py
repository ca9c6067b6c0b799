"""Publication of weights for families with unusual layouts: the weights arrive, or the family is refused."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import pytest
import tiny_models

from orchestrator.cluster.preload import fork_command

HERE = Path(__file__).parent
pytestmark = [pytest.mark.stack, pytest.mark.usefixtures("head")]


def run(directory: Path, *further: str) -> subprocess.CompletedProcess[str]:
    """Run own_weights.py in a process of its own, because a process can start only one engine."""
    forked = fork_command("vllm")
    assert forked is not None
    paths = os.pathsep.join(map(str, (HERE.parents[1], HERE.parent)))
    command = [*forked.split(), str(HERE / "own_weights.py"), str(directory), *further]
    return subprocess.run(command, capture_output=True, text=True, env=os.environ | {"PYTHONPATH": paths}, check=False)


@pytest.mark.parametrize(
    "family", ["qwen3_moe", pytest.param("gemma2", marks=pytest.mark.long)]
)  # packed experts; a tied output layer
def test_the_engine_answers_as_the_model_before_and_after_every_publication(family: str, tmp_path: Path) -> None:
    done = run(tiny_models.write(tmp_path, family))
    assert done.returncode == 0, done.stderr[-2000:]
    gaps = json.loads(done.stdout.splitlines()[-1])
    assert len(gaps) == 4
    assert max(gaps) < 1e-4, gaps


@pytest.mark.long
def test_an_engine_in_two_parts_answers_as_the_model(tmp_path: Path) -> None:
    """Check an engine whose two tensor-parallel workers are processes of their own, with half of every layer each."""
    done = run(tiny_models.write(tmp_path, "qwen3", num_key_value_heads=2), "2")
    assert done.returncode == 0, done.stderr[-2000:]
    gaps = json.loads(done.stdout.splitlines()[-1])
    assert len(gaps) == 4
    assert max(gaps) < 1e-4, gaps


def test_a_family_that_the_engine_takes_no_weights_of_is_refused_before_it_is_loaded(tmp_path: Path) -> None:
    done = run(tiny_models.write(tmp_path, "gpt_oss"))
    assert done.returncode != 0
    assert "vLLM's GptOssForCausalLM keeps its old experts when new weights arrive" in done.stderr
