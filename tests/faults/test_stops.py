"""Runs that are asked to stop by the file RUN/stop: where they end, and that the next attempt loses nothing."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import cpu_run
import pytest
from run_in_process import run_attempt

from orchestrator.cluster.local import LocalCluster
from orchestrator.config import RunConfig
from orchestrator.rundir.directory import RunDirectory
from workers.learner import Learner

pytestmark = pytest.mark.slow

TEN = 10  # updates of a step
SEVERAL: dict[str, tuple[str, dict[str, Any]]] = {  # algorithms with ten updates in each of three steps
    "grpo": ("grpo", {"num_mini_batches": 2, "num_iterations": 5}),
    "grpo-own-logprobs": (
        "grpo",
        {"num_mini_batches": 2, "num_iterations": 5, "vllm_importance_sampling_correction": True},
    ),
    "grpo-ahead": ("grpo-ahead", {"num_mini_batches": 2, "num_iterations": 5}),
    "ppo": ("ppo", {"num_mini_batches": 2, "num_ppo_epochs": 5}),
    "iterative-dpo": ("iterative-dpo-updates", {"batch_size": 8, "num_iterations": TEN}),
}
OFFLINE = {
    "sft": {"type": "sft", "batch_size": 4, "max_steps": 3, "learning_rate": 1e-2},
    "dpo": {"type": "dpo", "batch_size": 4, "max_steps": 3, "learning_rate": 1e-2},
    "reward_model": {"type": "reward_model", "batch_size": 4, "max_steps": 3, "learning_rate": 1e-2},
}
STOPPED, DONE = 2, 0  # exit statuses of an attempt


@pytest.fixture(scope="module")
def task(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("stops")
    cpu_run.write_task(root)
    rows = [{"prompt": f"{a}>", "completion": "aab"} for a in cpu_run.ALPHABET[:8]]
    (root / "demonstrations.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return root


def sampled(task: Path, output: str, algorithm: str, /, **changes: Any) -> RunConfig:
    base, updates = SEVERAL[algorithm]
    settings = {**(cpu_run.ALGORITHMS | cpu_run.FURTHER)[base], **updates}
    checkpoint = {"every": 3, "keep": 3}  # none is due before the end
    return cpu_run.config(task, task / output, base, algorithm=settings, checkpoint=checkpoint, **changes)


def offline(task: Path, output: str, algorithm: str) -> RunConfig:
    data = {"dataset": str(task / ("demonstrations.jsonl" if algorithm == "sft" else "pairs.jsonl"))}
    changes = {"algorithm": OFFLINE[algorithm], "data": data, "reward": [], "checkpoint": {"every": 3}}
    return cpu_run.config(task, task / output, "grpo", **changes)


def attempt(settings: RunConfig, **starts: Callable[..., Any]) -> int:
    """Run one attempt in a fork. `starts`: constructors of workers, by role."""
    cluster = partial(_cluster, {**cpu_run.STARTS, **starts})
    return run_attempt(Path(settings.output_dir), lambda disk: cpu_run.run(settings, cluster))


def _cluster(starts: dict[str, Callable[..., Any]], *_: Any, **__: Any) -> LocalCluster:
    return LocalCluster(starts)


def stopping_learner(run: Path, during: int) -> Callable[..., Learner]:
    """Return the constructor of a policy in whose n-th update of the attempt somebody asks for the end of the run."""

    def start(**arguments: Any) -> Learner:
        learner = cpu_run.learner(**arguments)
        engine: Any = learner._engine
        plain, made = engine.update, list[float]()

        def update(learning_rate: float) -> float:
            made.append(learning_rate)
            if len(made) == during:
                (run / "stop").touch()
            return float(plain(learning_rate))

        engine.update = update
        return learner

    return start


def stopping_rollout(run: Path, during: str) -> Callable[..., Any]:
    """Return the constructor of an engine in whose chunk `during` somebody asks for the end of the run."""

    class StoppingRollout(cpu_run.TorchRollout):
        def generate(self, *arguments: Any, **more: Any) -> Any:
            if any(str(argument).endswith(during) for argument in arguments):
                (run / "stop").touch()
            return super().generate(*arguments, **more)

    return StoppingRollout


def ended(run: Path) -> tuple[str, int, int]:
    """Return the cause in exit.json, the exit code, and the number of steps done."""
    body = json.loads((run / "exit.json").read_text())
    return body["cause"], body["exit_code"], body["step"]


def checkpoints(run: Path) -> list[str]:
    return sorted(path.parent.name for path in run.glob("checkpoints/*/manifest.json"))


def whole(settings: RunConfig) -> tuple[str, list[dict[str, Any]]]:
    """Return the outcome of an uninterrupted run, which is made once."""
    run = Path(settings.output_dir) / "run"
    if not run.exists():
        assert attempt(settings) == DONE
    return cpu_run.outcome(run)


@pytest.mark.parametrize(("algorithm", "made"), [*((name, 4) for name in SEVERAL), ("ppo", 1), ("ppo", TEN - 1)])
def test_a_run_ends_after_the_update_it_is_in_and_goes_on_with_the_next(task: Path, algorithm: str, made: int) -> None:
    """Stop in the second step, when `made` of its ten updates are made."""
    expected = whole(sampled(task, f"whole-{algorithm}", algorithm))
    settings = sampled(task, f"{algorithm}-{made}", algorithm)
    run = task / f"{algorithm}-{made}" / "run"
    assert attempt(settings, policy=stopping_learner(run, TEN + made)) == STOPPED
    assert ended(run) == ("user", 143, 1)
    assert checkpoints(run) == [f"step-1-update-{made}"]
    assert not (run / "stop").exists()
    assert attempt(settings) == DONE
    assert cpu_run.outcome(run) == expected
    updates = (run / "updates.jsonl").read_text().splitlines()
    assert [json.loads(line)["update"] for line in updates] == list(range(1, 3 * TEN + 1))
    assert cpu_run.sampled_again(run) == 0


def test_a_run_that_is_stopped_in_every_step_ends_where_an_uninterrupted_one_does(task: Path) -> None:
    expected = whole(sampled(task, "whole-ppo", "ppo"))
    settings, run = sampled(task, "often", "ppo"), task / "often" / "run"
    for _ in range(9):
        assert attempt(settings, policy=stopping_learner(run, 3)) == STOPPED
    assert checkpoints(run) == ["step-2-update-1", "step-2-update-4", "step-2-update-7"]
    assert attempt(settings, policy=stopping_learner(run, 4)) == DONE
    assert cpu_run.outcome(run) == expected


def test_a_stop_during_the_last_update_of_a_step_ends_the_run_after_the_step(task: Path) -> None:
    settings, run = sampled(task, "last-update", "grpo"), task / "last-update" / "run"
    assert attempt(settings, policy=stopping_learner(run, TEN)) == STOPPED
    assert ended(run) == ("user", 143, 1)
    assert checkpoints(run) == ["step-1"]


def test_a_stop_while_completions_are_sampled_ends_at_once_and_no_recorded_chunk_is_sampled_again(task: Path) -> None:
    """Stop in the first of two chunks of the second step, which is recorded; the second is not asked for."""
    expected = whole(sampled(task, "whole-iterative-dpo", "iterative-dpo"))
    settings, run = sampled(task, "sampling", "iterative-dpo"), task / "sampling" / "run"
    assert attempt(settings, rollout=stopping_rollout(run, "step-2/chunk-0-")) == STOPPED
    assert ended(run) == ("user", 143, 1)
    assert checkpoints(run) == ["step-1"]
    assert attempt(settings) == DONE
    assert cpu_run.outcome(run) == expected
    assert cpu_run.sampled_again(run) == 0


def test_a_stop_before_anything_has_begun_counts(task: Path) -> None:
    settings, run = sampled(task, "early", "grpo"), task / "early" / "run"
    RunDirectory.create(settings, "")
    (run / "stop").touch()
    assert attempt(settings) == STOPPED
    assert ended(run) == ("user", 143, 0)
    assert checkpoints(run) == []
    assert attempt(settings) == DONE, "the stop was for the attempt that has ended"


@pytest.mark.parametrize("algorithm", OFFLINE)
def test_a_run_on_a_dataset_ends_after_its_step(task: Path, algorithm: str) -> None:
    expected = whole(offline(task, f"whole-offline-{algorithm}", algorithm))
    settings, run = offline(task, f"offline-{algorithm}", algorithm), task / f"offline-{algorithm}" / "run"
    assert attempt(settings, policy=stopping_learner(run, 2)) == STOPPED
    assert ended(run) == ("user", 143, 2)
    assert checkpoints(run) == ["step-2"]
    assert attempt(settings) == DONE
    assert cpu_run.outcome(run) == expected
