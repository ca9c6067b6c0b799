"""NaN and infinity during training: nothing of the step is kept, and the resumed run is not affected."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cpu_run
import pytest
import run_in_process
import torch
from run_in_process import World

from orchestrator import errors
from orchestrator.cluster.local import LocalCluster
from orchestrator.cluster.ray_host import Failure
from orchestrator.cluster.ray_recovery import classify
from orchestrator.rundir.ledger import Fact, read_ledger
from workers.config import ModelConfig
from workers.engines.base import EngineError, Response
from workers.learner import Learner
from workers.updates import NotFinite

Forward = Callable[[torch.Tensor], torch.Tensor]
AT = 2  # step of the fault


def steps_of(run: Path, fact: Fact) -> list[int]:
    return [record.step for record in read_ledger(run / "ledger.jsonl")[0] if record.fact == fact]


def poisoned(role: str, forward: Forward) -> Callable[..., LocalCluster]:
    """Return a cluster on which `role` computes every loss of one step from `forward` of the true outputs."""

    def learner(**arguments: Any) -> Learner:
        poisoned_learner = cpu_run.learner(**arguments)
        engine: Any = poisoned_learner._engine
        true_step, true_forward, poisoning = poisoned_learner.step, engine.forward, False

        def step(at: int, *scored: Any, **further: Any) -> Any:
            nonlocal poisoning
            poisoning = at == AT - 1
            return true_step(at, *scored, **further)

        def poisoned_forward(*arguments: Any) -> Any:
            outputs, entropy = true_forward(*arguments)
            return (forward(outputs) if poisoning else outputs), entropy

        engine.forward = poisoned_forward
        poisoned_learner.step = step  # type: ignore[method-assign]
        return poisoned_learner

    return lambda *_, **__: LocalCluster({**cpu_run.STARTS, role: learner})


def nan_gradient(outputs: torch.Tensor) -> torch.Tensor:
    """Return the same outputs, with NaN as their gradient."""
    outputs = outputs * 1
    outputs.register_hook(lambda gradient: gradient * math.nan)
    return outputs


@pytest.mark.parametrize(
    ("world", "role", "forward", "message"),
    [
        ("grpo", "policy", lambda outputs: outputs * math.nan, "a loss that is NaN or infinite"),
        ("grpo", "policy", nan_gradient, "a gradient of norm nan"),
        ("ppo", "critic", lambda outputs: outputs * math.inf, "a loss that is NaN or infinite"),
    ],
    indirect=["world"],
    ids=["loss", "gradient", "critic"],
)
def test_what_is_not_finite_is_never_kept(world: World, role: str, forward: Forward, message: str) -> None:
    name = f"nan-{role}"
    with pytest.raises(NotFinite, match=rf"step {AT}, update 1 of \d: {message}, on prompts prompts\.jsonl:\d+"):
        cpu_run.run(world.config(name), poisoned(role, forward))
    run = world.root / name / "run"
    assert steps_of(run, Fact.trained) == steps_of(run, Fact.checkpoint) == [AT - 1]
    assert [p.name for p in (run / "checkpoints").iterdir()] == [f"step-{AT - 1}"]
    assert [row["step"] for row in cpu_run.rows(run)] == [AT - 1]
    assert run_in_process.run_to_end(world, name) == 0


def test_a_not_finite_error_of_a_worker_becomes_one_of_the_orchestrator() -> None:
    """Check that the error is recognised by the name of its class, which is all that arrives from the worker."""
    call: Any = None
    with pytest.raises(errors.NotFinite, match="policy rank 0 failed"):
        classify(call, Failure("policy", 0, "aa00", NotFinite.__name__, "NotFinite: a gradient of norm nan", 4711))


@pytest.mark.parametrize("world", ["grpo"], indirect=True)
def test_a_log_probability_that_is_nan_is_not_recorded(world: World) -> None:
    """Check that a rollout with NaN is not recorded. A recorded one would be trained on in every attempt."""

    class Broken(cpu_run.TorchSampler):
        def generate(self, *arguments: Any, **settings: Any) -> list[Response]:
            answers = super().generate(*arguments, **settings)
            if self.version == AT - 1:
                answers[0].logprobs[0] = math.nan
            return answers

    class Rollout(cpu_run.TorchRollout):
        def _start(self, model: ModelConfig, max_model_len: int, *, seed: int, cuda: bool) -> Broken:
            return Broken(str(model.path))

    with pytest.raises(EngineError, match=rf"version {AT - 1} gives log-probabilities that are NaN"):
        cpu_run.run(world.config("nan-rollout"), lambda *_, **__: LocalCluster({**cpu_run.STARTS, "rollout": Rollout}))
    assert steps_of(world.root / "nan-rollout" / "run", Fact.generated) == [AT - 1] * 2  # two chunks
    assert run_in_process.run_to_end(world, "nan-rollout") == 0
