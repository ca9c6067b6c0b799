"""Loop against fakes, event by event: the order of events, and the version of the weights in each."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from fakes import EventRecorder, Events, FakeEncoder, FakeLearner, FakeReference, FakeReward, FakeRollout

from orchestrator.cluster.local import LocalCluster
from orchestrator.config import RunConfig
from orchestrator.driver import loop
from orchestrator.errors import WorkerFailed
from orchestrator.pipeline.exports import write_model
from orchestrator.pipeline.learning import Learners
from orchestrator.pipeline.publishing import EnginePublisher, NoPublisher
from orchestrator.pipeline.reference import NoReference, ReferenceGang, Teacher
from orchestrator.pipeline.roles import gang_plans
from orchestrator.pipeline.sources import DatasetSource, RolloutSource
from workers.types import Example, Prompt, Sampling

# batch_indices(3, 2, step, seed=0) is [0 1], [2 1], [2 0]: the example of its docstring.
PROMPTS = [Prompt(id=f"p{i}", text="") for i in range(3)]
GRPO = {"type": "grpo", "beta": 0.1, "prompts_per_step": 2, "num_generations": 2, "max_steps": 3}
SFT = {"type": "sft", "batch_size": 2, "max_steps": 3}


def config(algorithm: dict[str, Any], **keys: Any) -> RunConfig:
    data = {"dataset": "rows.jsonl"} if algorithm["type"] == "sft" else {"prompts": "prompts.jsonl"}
    reward = [] if algorithm["type"] == "sft" else [{"type": "math"}]
    body = {"name": "test", "model": {"path": "m"}, "data": data, "algorithm": algorithm, "reward": reward, **keys}
    return RunConfig.model_validate_json(json.dumps(body))


class Run:
    """Run of fakes. `events` are its events from the first step on."""

    def __init__(
        self, run: RunConfig, *, prompts_per_chunk: int | None = None, **stand_ins: Callable[..., Any]
    ) -> None:
        self.events: Events = []
        self._prompts_per_chunk = prompts_per_chunk
        self.recorder = EventRecorder(self.events)
        self._max_steps = run.algorithm.max_steps or 0
        fakes: dict[str, Callable[..., Any]] = {
            "policy": FakeLearner,
            "critic": FakeLearner,
            "reference": FakeReference,
            "teacher": FakeReference,
            "rollout": FakeRollout,
            "reward": FakeReward,
            "dataset": FakeEncoder,
            **stand_ins,
        }
        cluster = LocalCluster({role: partial(fake, self.events) for role, fake in fakes.items()})
        gangs: dict[str, Any] = cluster.spawn(gang_plans(run, cuda=False, max_steps=self._max_steps))
        self.parts: dict[str, Any] = {
            "reference_policy": self._reference_policy(run, gangs),
            "learners": Learners(gangs["policy"], gangs.get("critic")),
            "publisher": EnginePublisher(
                gangs["policy"], gangs["rollout"], cuda=False, segment="segment", tensor_parallel_size=1
            )
            if "rollout" in gangs
            else NoPublisher(),
            "recorder": self.recorder,
            "waited_s": cluster.waited_s,
            "stop": lambda: False,
        }
        self.parts["source"] = self._source(run, gangs)
        self.events.clear()

    def _reference_policy(self, run: RunConfig, gangs: dict[str, Any]) -> Any:
        if "teacher" in gangs:
            return Teacher(gangs["teacher"], temperature=0.5, states=run.algorithm.needs_teacher_states)
        if "reference" not in gangs:
            return NoReference()
        return ReferenceGang(
            gangs["reference"],
            partial(write_model, gangs["policy"]),
            run.reference,
            temperature=1.0,
            directory=lambda version: Path(f"version-{version}"),
        )

    def _source(self, run: RunConfig, gangs: dict[str, Any]) -> Any:
        on_begin, max_steps = self.parts["reference_policy"].begin, self._max_steps
        if "dataset" in gangs:
            rows = [Example(prompt=p, completions=("a",)) for p in PROMPTS]
            return DatasetSource(gangs["dataset"], rows, batch_size=2, seed=0, max_steps=max_steps, on_begin=on_begin)
        return RolloutSource(
            gangs["rollout"],
            gangs.get("reward"),
            PROMPTS,
            Sampling(num_generations=2, max_completion_length=4),
            prompts_per_step=run.algorithm.prompts_per_step,  # type: ignore[union-attr]
            prompts_per_chunk=self._prompts_per_chunk,
            max_staleness=run.max_staleness,
            max_steps=max_steps,
            on_begin=on_begin,
        )

    def train(self, steps_done: int = 0, max_steps: int | None = None, **parts: Any) -> bool:
        all_parts = loop.Parts(**{**self.parts, **parts})
        return loop.run(all_parts, steps_done=steps_done, max_steps=max_steps or self._max_steps)


# ------------------------------------------------------------------------------------------------ order of events


def test_a_synchronous_run() -> None:
    run = Run(config({**GRPO, "max_steps": 2}, policy={"num_ranks": 2}))
    assert run.train()
    assert run.events == [
        "planned 0",
        "rollout 0: generate p0 p1 from v0",
        "reward: score p0 p1",
        "reference 0: logprobs at 1",
        "arrived 0",
        "policy 0: learn step 0 from v0 with scores reference",
        "policy 1: learn step 0 from v0 with scores reference",
        "update 1 of 1 in 0",
        "trained 0 (keep v0)",
        "policy 0: send weights",
        "policy 1: send weights",
        "rollout 0: receive v1",
        "committed 0",
        "planned 1",
        "rollout 0: generate p2 p1 from v1",
        "reward: score p2 p1",
        "reference 0: logprobs at 1",
        "arrived 1",
        "policy 0: learn step 1 from v1 with scores reference",
        "policy 1: learn step 1 from v1 with scores reference",
        "update 1 of 1 in 1",
        "trained 1 (keep v0)",
        "policy 0: send weights",
        "policy 1: send weights",
        "rollout 0: receive v2",
        "committed 1",
    ]


def test_a_run_that_samples_one_version_ahead() -> None:
    run = Run(config({**GRPO, "beta": 0.0}, max_staleness=1))
    assert run.train()
    assert run.events == [
        "planned 0",
        "rollout 0: generate p0 p1 from v0",
        "reward: score p0 p1",
        "rollout 0: generate p2 p1 from v0",
        "reward: score p2 p1",
        "arrived 0",
        "policy 0: learn step 0 from v0 with scores",
        "update 1 of 1 in 0",
        "trained 0",
        "policy 0: send weights",
        "rollout 0: receive v1",
        "committed 0",
        "planned 1",
        "rollout 0: generate p2 p0 from v1",
        "reward: score p2 p0",
        "arrived 1",
        "policy 0: learn step 1 from v0 with scores",
        "update 1 of 1 in 1",
        "trained 1",
        "policy 0: send weights",
        "rollout 0: receive v2",
        "committed 1",
        "planned 2",
        "arrived 2",
        "policy 0: learn step 2 from v1 with scores",
        "update 1 of 1 in 2",
        "trained 2",
        "policy 0: send weights",
        "rollout 0: receive v3",
        "committed 2",
    ]


def test_a_run_with_a_critic() -> None:
    run = Run(config({"type": "ppo", "prompts_per_step": 2, "max_steps": 1}))
    assert run.train()
    assert run.events == [
        "planned 0",
        "rollout 0: generate p0 p1 from v0",
        "reward: score p0 p1",
        "reference 0: logprobs at 1",
        "arrived 0",
        "critic 0: infer",
        "policy 0: learn step 0 from v0 with scores reference values",
        "critic 0: learn step 0 from v0 with scores reference values",
        "update 1 of 1 in 0",
        "trained 0 (keep v0)",
        "policy 0: send weights",
        "rollout 0: receive v1",
        "committed 0",
    ]


@pytest.mark.parametrize(
    ("objective", "requested"),
    [({}, "hidden states"), ({"objective": "policy_gradient", "beta": 1.0}, "logprobs at 0.5")],
)
def test_distillation_uses_a_teacher_and_needs_no_reward(objective: dict[str, Any], requested: str) -> None:
    distill = {"type": "distill", "prompts_per_step": 2, "max_steps": 1, **objective}
    run = Run(config(distill, teacher={"model": {"path": "t"}}, reward=[]))
    assert run.train()
    assert run.events == [
        "planned 0",
        "rollout 0: generate p0 p1 from v0",
        f"reference 0: {requested}",
        "arrived 0",
        "policy 0: learn step 0 from v0 with reference",
        "update 1 of 1 in 0",
        "trained 0",
        "policy 0: send weights",
        "rollout 0: receive v1",
        "committed 0",
    ]


def test_rounds_of_iterative_dpo_move_the_reference(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    dpo = {"type": "dpo", "prompts_per_step": 2, "num_generations": 2, "max_steps": 2}
    run = Run(config(dpo, reference={"refresh": "every_round"}))
    assert run.train()
    second = run.events[run.events.index("planned 1") :]
    assert second[:10] == [
        "planned 1",
        "rollout 0: generate p2 p1 from v1",
        "reward: score p2 p1",
        "policy 0: export .version-1.partial",
        "reference 0: load version-1",
        "reference 0: logprobs at 1",
        "arrived 1",
        "policy 0: learn step 1 from v1 with scores reference",
        "update 1 of 1 in 1",
        "trained 1 (refresh v1)",
    ]
    assert [(m["ref/age"], m["ref/refreshed"]) for m in run.recorder.metrics] == [(0, 0), (0, 1)]


def test_a_round_goes_chunk_by_chunk_and_update_by_update(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first chunk of the round decides on the reference. The learner begins when the last chunk is scored."""
    monkeypatch.chdir(tmp_path)
    dpo = {"type": "dpo", "prompts_per_step": 2, "num_generations": 2, "max_steps": 2}
    policy = partial(FakeLearner, num_updates=3)
    run = Run(config(dpo, reference={"refresh": "every_round"}), prompts_per_chunk=1, policy=policy)
    assert run.train()
    assert run.events[run.events.index("planned 1") :] == [
        "planned 1",
        "rollout 0: generate p2 from v1",
        "reward: score p2",
        "rollout 0: generate p1 from v1",
        "reward: score p1",
        "policy 0: export .version-1.partial",
        "reference 0: load version-1",
        "reference 0: logprobs at 1",
        "reference 0: logprobs at 1",
        "arrived 1",
        "policy 0: learn step 1 from v1 with scores reference",
        "policy 0: update 2 of step 1",
        "update 1 of 3 in 1",
        "policy 0: update 3 of step 1",
        "update 2 of 3 in 1",
        "update 3 of 3 in 1",
        "trained 1 (refresh v1)",
        "policy 0: send weights",
        "rollout 0: receive v2",
        "committed 1",
    ]
    assert [m["loss"] for m in run.recorder.metrics] == [1.0, 1.0]  # (0.5 + 1 + 1.5) / 3


def test_a_run_on_a_dataset_publishes_nothing() -> None:
    run = Run(config(SFT))
    assert run.train(max_steps=2)
    assert run.events == [
        "planned 0",
        "encoder: encode p0 p1",
        "encoder: encode p2 p1",
        "arrived 0",
        "policy 0: learn step 0 from v0 with nothing",
        "update 1 of 1 in 0",
        "trained 0",
        "committed 0",
        "planned 1",
        "encoder: encode p2 p0",
        "arrived 1",
        "policy 0: learn step 1 from v0 with nothing",
        "update 1 of 1 in 1",
        "trained 1",
        "committed 1",
    ]


# ------------------------------------------------------------------------------------------------ end of the loop


def answers(*values: Any) -> Callable[[], Any]:
    """Return a function that gives one value per call, and fails when it has no more."""
    script: Iterator[Any] = iter(values)
    return lambda: next(script)


def test_a_stop_takes_effect_between_steps() -> None:
    run = Run(config(GRPO))
    assert not run.train(stop=answers(False, False, True))
    assert run.events[-1] == "committed 1"
    assert "planned 2" not in run.events


def test_a_step_that_goes_over_the_budget_learns_from_the_chunks_so_far() -> None:
    """Spend the budget after the second of three chunks: the third is requested as well, but not learned from."""
    run = Run(config({**GRPO, "beta": 0.0, "prompts_per_step": 3}), prompts_per_chunk=1)
    run.train(max_steps=1, ends_early=answers(False, True, True))
    assert run.recorder.num_chunks == [2]
    assert run.events[-1] == "committed 0"


def test_a_resumed_run_takes_the_batches_of_the_steps_that_are_left() -> None:
    run = Run(config(GRPO))
    assert run.train(steps_done=2)
    assert run.events[:2] == ["planned 2", "rollout 0: generate p2 p0 from v0"]
    assert [e for e in run.events if e.startswith("committed")] == ["committed 2"]


class DyingLearner(FakeLearner):
    def step(self, step: int, *scored: Any, **more: Any) -> Any:
        raise RuntimeError("the optimiser failed")


def test_a_step_that_fails_is_not_committed() -> None:
    run = Run(config(GRPO), policy=DyingLearner)
    with pytest.raises(RuntimeError, match="the optimiser failed"):
        run.train()
    assert run.events[-1] == "arrived 0"


def test_the_driver_s_own_time_excludes_waiting() -> None:
    run = Run(config(GRPO))
    run.train(max_steps=1, waited_s=answers(10.0, 12.5))
    (metrics,) = run.recorder.metrics
    assert metrics["timing/driver"] == pytest.approx(metrics["timing/step"] - 2.5)
    assert 0 <= metrics["timing/wait_for_batch"] <= metrics["timing/step"]
    assert metrics["timing/publish"] == 0.125
    assert metrics["loss"] == 0.5


# ------------------------------------------------------------------------------------------------ end within a step


def test_a_run_that_halts_while_completions_are_sampled_gives_the_step_up() -> None:
    run = Run(config({**GRPO, "beta": 0.0, "prompts_per_step": 3}), prompts_per_chunk=1)
    assert not run.train(halts=answers(False, True))
    assert run.events[-1] == "halted"
    assert "arrived 0" not in run.events


def test_a_run_that_halts_between_two_updates_pauses_and_leaves_the_rest_of_the_step() -> None:
    run = Run(config(GRPO), policy=partial(FakeLearner, num_updates=3))
    assert not run.train(halts=answers(False, False, True))
    assert run.events[-4:] == [
        "policy 0: update 2 of step 0",
        "update 1 of 3 in 0",
        "update 2 of 3 in 0",
        "paused 0 after 2",
    ]


class FailingReward(FakeReward):
    def score(self, *args: Any, **kwargs: Any) -> Any:
        raise WorkerFailed("reward", 0, "its process was ended by SIGTERM")


def test_a_worker_that_fails_after_a_stop_was_asked_for_is_not_needed() -> None:
    run = Run(config(GRPO), reward=FailingReward)
    assert not run.train(halts=lambda: True)
    assert run.events[-1] == "halted"
    with pytest.raises(WorkerFailed):
        Run(config(GRPO), reward=FailingReward).train()
