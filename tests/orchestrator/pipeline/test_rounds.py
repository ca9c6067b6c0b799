"""Rounds that differ: prompts, sampling, settings of the learners, and the weights that a round starts from."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from fakes import Events, FakeLearner, FakeReward, FakeRollout
from recipe_dir import RecipeDir

from orchestrator.cluster.base import wait
from orchestrator.cluster.local import LocalGang
from orchestrator.config import RunConfig, load
from orchestrator.pipeline.learning import Learners
from orchestrator.pipeline.rounds import draws, keep_initial, round_starts, rows_of_round
from orchestrator.pipeline.sources import PendingBatch, RolloutSource
from workers.types import Prompt, Sampling, merge

COUNT = 4
PROMPTS = [Prompt(id=f"p{i}", text="") for i in range(20)]
Configured = Callable[..., RunConfig]


@pytest.fixture
def configured(recipe_dir: RecipeDir) -> Configured:
    def run(rounds: str = "{}", files: str = "./prompts.jsonl", **changes: str) -> RunConfig:
        algorithm = f"{{type: dpo, prompts_per_step: 4, num_generations: 2, max_steps: {COUNT}}}"
        data = f"{{prompts: {files}}}"
        return load(recipe_dir.recipe({"algorithm": algorithm, "rounds": rounds, "data": data, **changes})).stages[0]

    return run


def rows(run: RunConfig, files: tuple[int, ...], seed: int = 0) -> list[list[int]]:
    return [rows_of_round(run, files, index, seed=seed) for index in range(COUNT)]


# ------------------------------------------------------------------------------------------------ prompts


@pytest.mark.parametrize("kind", ["stream", "disjoint"])
def test_no_prompt_comes_twice_before_all_have_come(configured: Configured, kind: str) -> None:
    drawn = rows(configured(f"{{prompts: {kind}, prompts_per_step: [3, 5, 2]}}"), (12,))
    assert [len(part) for part in drawn] == [3, 5, 2, 2]
    assert sorted(row for part in drawn for row in part) == list(range(12))


def test_a_stream_begins_again_with_other_prompts_than_those_of_the_round(configured: Configured) -> None:
    drawn = rows(configured("{prompts_per_step: [3, 4]}"), (5,))
    assert all(len(set(part)) == len(part) for part in drawn)
    assert {row for part in drawn[:2] for row in part} == set(range(5))


def test_a_fixed_pool_is_the_same_in_every_round(configured: Configured) -> None:
    drawn = rows(configured("{prompts: fixed, prompts_per_step: [4, 6]}"), (20,))
    assert drawn[1] == drawn[2] == drawn[3]
    assert drawn[0] == drawn[1][:4]
    assert rows(configured("{prompts: fixed}"), (20,), seed=1)[0] != drawn[0]


def test_each_round_has_a_file_of_its_own(configured: Configured) -> None:
    files = "[./a.jsonl, ./b.jsonl, ./c.jsonl, ./d.jsonl]"
    drawn = rows(configured("{prompts: files}", files), (5, 4, 6, 5))
    assert [(min(part) >= first, max(part) < first + 6) for part, first in zip(drawn, (0, 5, 9, 15), strict=True)] == [
        (True, True)
    ] * 4
    assert sorted(drawn[1]) == [5, 6, 7, 8]


def test_files_come_again_in_their_order_with_their_next_prompts(configured: Configured) -> None:
    drawn = rows(configured("{prompts: cycle_files}", "[./a.jsonl, ./b.jsonl]"), (8, 4))
    assert sorted(drawn[0] + drawn[2]) == list(range(8))
    assert sorted(drawn[1]) == sorted(drawn[3]) == [8, 9, 10, 11]


@pytest.mark.parametrize("kind", ["stream", "fixed", "disjoint"])
def test_after_a_rollback_samples_are_others_and_pools_stay(configured: Configured, kind: str) -> None:
    run = configured(f"{{prompts: {kind}}}")
    before, after = (draws(run, (20,), rollbacks=count)(2) for count in (0, 1))
    assert before.sampling.seed != after.sampling.seed
    assert (before.rows == after.rows) == (kind != "stream")


# ------------------------------------------------------------------------------------------------ sampling


class NotingRollout(FakeRollout):
    """Rollout that notes how it is to sample."""

    def generate(self, prompts: Any, sampling: Sampling, *more: Any) -> Any:
        self._events.append(f"{len(prompts)} × {sampling.num_generations} at {sampling.temperature:g}")
        return super().generate(prompts, sampling, *more)


def test_rounds_are_sampled_by_their_own_settings(configured: Configured) -> None:
    """A chunk has tokens for 8 completions: its prompts become fewer as groups grow."""
    run = configured(
        "{temperature: [0.8, 1.3], num_generations: [2, 4], prompts_per_step: [4, 6]}",
        rollout="{max_prompt_length: 4, max_completion_length: 4, tokens_per_chunk: 64}",
    )
    events: Events = []
    rollout: Any = LocalGang("rollout", [NotingRollout(events)])
    reward: Any = LocalGang("reward", [FakeReward([])])
    source = RolloutSource(
        rollout,
        reward,
        PROMPTS,
        Sampling(num_generations=2, max_completion_length=4),
        prompts_per_step=4,
        max_staleness=0,
        max_steps=COUNT,
        on_begin=lambda step, chunk: None,
        rounds=draws(run, (20,), rollbacks=0),
    )
    for index in range(3):
        events.clear()
        chunks = list(source.stream(index))
        sizes = [event for event in events if "×" in event]
        assert sizes == (["4 × 2 at 0.8"] if index == 0 else ["2 × 4 at 1.3"] * 3)
        sampled = [prompt.id for chunk in chunks for prompt in merge(wait(chunk.experience)).prompts]
        assert sampled == [f"p{row}" for row in source.rows(index)]


# ------------------------------------------------------------------------------------------------ learners


class NotingLearner(FakeLearner):
    def begin_round(self, settings: Any, base: str | None = None) -> None:
        self._events.append(f"{self._name}: round with {settings} from {base and Path(base).name}")


def learned(run: RunConfig, steps: int = 2) -> Events:
    events: Events = []
    policy: Any = LocalGang("policy", [NotingLearner(events, rank=rank) for rank in range(2)])
    learners = Learners(policy, None, rounds=round_starts(run, base=Path("base")))
    for index in range(steps):
        learners.learn(index, PendingBatch(chunks=[]), None, None)
    return events


def test_learners_begin_each_round_with_its_settings_before_they_learn(configured: Configured) -> None:
    lines = [
        [f"policy {rank}: round with {{'beta': {beta}}} from None" for rank in range(2)]
        + [f"policy {rank}: learn step {index} from v with scores" for rank in range(2)]
        for index, beta in enumerate((0.1, 0.3))
    ]
    assert learned(configured("{beta: [0.1, 0.3]}")) == [line for part in lines for line in part]


def test_learners_start_from_the_initial_state_with_a_fresh_optimiser(configured: Configured) -> None:
    first = learned(configured("{policy: base}"))[0]
    assert first == "policy 0: round with {'reset_optimizer': True} from base"


def test_alike_rounds_set_nothing(configured: Configured) -> None:
    assert round_starts(configured("{temperature: [0.8], prompts: fixed}"), base=Path("base")) is None


def test_the_initial_policy_is_kept_where_rounds_need_it(configured: Configured, tmp_path: Path) -> None:
    base, reference = tmp_path / "base", tmp_path / "reference" / "version-0"

    def kept(rounds: str, refresh: str) -> Events:
        events: Events = []
        policy: Any = LocalGang("policy", [FakeLearner(events)])
        run = configured(rounds, reference=f"{{refresh: {refresh}}}")
        keep_initial(run, policy, base=base, reference=reference)
        return events

    assert kept("{}", "every_round") == []
    assert kept("{}", "ema") == ["policy 0: export .version-0.partial"]
    assert reference.is_dir()
    assert kept("{}", "ema") == []  # of an earlier attempt, and durable
    assert kept("{policy: base}", "never") == ["policy 0: save base"]
    assert kept("{policy: base}", "never") == ["policy 0: save base"]  # anew by every attempt
