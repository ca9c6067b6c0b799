"""Every method makes the same updates on one rank and on two, for any partition and token budget: the weights equal
those of plain torch in one process and one micro-batch to 1e-5."""

from __future__ import annotations

import json
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from method_rank import SEED, STEPS
from methods import ALGORITHMS, MORE, figures, name_of, scored
from safetensors.torch import load_file
from torch import Tensor
from torch_engine import TorchEngine, learner_of
from zero_gang import start_ranks

from workers.learner import Learner
from workers.stats import Metrics, StepStats

pytestmark = pytest.mark.stack

METHODS = [*ALGORITHMS, *MORE]

GANGS: dict[str, tuple[int, dict[str, Any]]] = {  # ranks, and fields of LearnerConfig
    "one-rank-small-micro-batches": (1, {"tokens_per_micro_batch": 12, "zero_stage": 0}),
    "two-ranks-partitioned": (2, {"tokens_per_micro_batch": 20, "param_persistence_threshold": 0}),
    "two-ranks-stage-1": (2, {"zero_stage": 1}),
}


@pytest.fixture(scope="module", params=GANGS)
def out(request: pytest.FixtureRequest, qwen2: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Run every method in each gang. Return the output directory."""
    directory = tmp_path_factory.mktemp("methods")
    world_size, settings = GANGS[request.param]
    start_ranks("method_rank.py", world_size, [str(directory), str(qwen2), json.dumps(settings)])
    return directory


def start(model: Path, method: int) -> tuple[Learner, TorchEngine]:
    recipe = {key: value for key, value in METHODS[method].items() if key != "head"}
    return learner_of(model, recipe, head=METHODS[method].get("head", "logprobs"), draw=SEED)


def untrained(model: Path, method: int) -> Iterator[tuple[str, Tensor]]:
    return start(model, method)[1].weights()


@cache
def plainly(model: Path, method: int) -> tuple[dict[str, Tensor], list[Metrics]]:
    """Compute weights and metrics with plain torch in one process."""
    learner, engine = start(model, method)
    steps = [figures(learner.step(i, *scored(METHODS[method]))) for i in range(STEPS)]
    return {name: weight.clone() for name, weight in engine.weights()}, steps


@pytest.mark.parametrize("method", range(len(METHODS)), ids=[name_of(a) for a in METHODS])
def test_weights_and_figures_are_those_of_one_process(out: Path, qwen2: Path, method: int) -> None:
    name = name_of(METHODS[method])
    expected, steps = plainly(qwen2, method)
    actual = load_file(out / f"{name}.safetensors")
    assert sorted(actual) == sorted(expected)
    assert (
        max((expected[n] - weight).abs().max() for n, weight in untrained(qwen2, method)) > 1e-6
    )  # the weights have changed
    for weight in expected:
        torch.testing.assert_close(actual[weight], expected[weight], atol=1e-5, rtol=0, msg=weight)
    ranks = [json.loads(path.read_text()) for path in sorted(out.glob(f"{name}-[0-9].json"))]
    for step, whole in enumerate(steps):
        stats = [StepStats(**rank[step]) for rank in ranks]
        assert figures(*stats) == pytest.approx(whole, rel=1e-4, abs=1e-5)
