"""Chunks of a step: their sizes, order and numbers, and how many are requested before earlier ones are scored."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from fakes import Events, FakeReward, FakeRollout

from orchestrator.cluster.base import wait
from orchestrator.cluster.local import LocalGang
from orchestrator.pipeline.sources import (
    UNSCORED,
    Chunk,
    PendingBatch,
    RolloutSource,
    StoredChunk,
    completions_per_chunk,
    sample,
)
from workers.config import RolloutConfig
from workers.types import Experience, Prompt, Sampling, Scores, merge, merge_scores

PROMPTS = [Prompt(id=f"p{i}", text="") for i in range(7)]
SAMPLING = Sampling(num_generations=2, max_completion_length=4)


class CountingStore:
    """Store that holds nothing and counts the chunks that are requested and not waited for yet."""

    def __init__(self, events: Events) -> None:
        self._events, self._unscored = events, set[int]()
        self.most = 0

    def file_prefix(self, step: int, chunk: int) -> str:
        return f"step-{step}/chunk-{chunk}-"

    def num_prompts(self, step: int, chunk: int) -> int | None:
        return None

    def find(self, step: int, chunk: int) -> StoredChunk | None:
        return None

    def register(self, step: int, chunk: Chunk) -> None:
        self._events.append(f"request {step}.{chunk.index}")
        self._unscored.add(chunk.index)
        self.most = max(self.most, len(self._unscored))

    def wait_for(self, step: int, chunk: int) -> None:
        self._events.append(f"wait for {step}.{chunk}")
        self._unscored -= set(range(chunk + 1))


def gangs(events: Events, engines: int = 1, reward: FakeReward | None = None) -> tuple[Any, Any]:
    rollout = LocalGang("rollout", [FakeRollout(events, index=i) for i in range(engines)])
    return rollout, LocalGang("reward", [reward or FakeReward(events)])


def source(
    events: Events, store: CountingStore | None = None, *, reward: FakeReward | None = None, **settings: Any
) -> RolloutSource:
    given: dict[str, Any] = {"prompts_per_step": 7, "prompts_per_chunk": 2, "max_staleness": 0, "max_steps": 3}
    begun = settings.pop("begun", [])
    return RolloutSource(
        *gangs(events, settings.pop("engines", 1), reward),
        PROMPTS,
        SAMPLING,
        on_begin=lambda step, chunk: begun.append((step, chunk.index)),
        store=store,
        **given | settings,
    )


def prompts_of(chunk: Chunk) -> list[str]:
    return [prompt.id for prompt in merge(wait(chunk.experience)).prompts]


# ------------------------------------------------------------------------------------------------ sizes and order


@pytest.mark.parametrize("engines", [1, 2, 3])
@pytest.mark.parametrize(("size", "sizes"), [(1, [1] * 7), (2, [2, 2, 2, 1]), (7, [7]), (9, [7]), (None, [7])])
def test_a_step_is_cut_into_chunks_in_order(size: int | None, sizes: list[int], engines: int) -> None:
    streamed = source([], prompts_per_chunk=size, engines=engines)
    chunks = list(streamed.stream(1))
    assert [chunk.prompts for chunk in chunks] == sizes
    assert [chunk.index for chunk in chunks] == list(range(len(sizes)))
    assert [{part.chunk for part in wait(chunk.experience)} for chunk in chunks] == [{i} for i in range(len(sizes))]
    assert [len(chunk.experience) for chunk in chunks] == [engines] * len(sizes)
    assert [name for chunk in chunks for name in prompts_of(chunk)] == [f"p{row}" for row in streamed.rows(1)]


def test_chunks_together_are_the_step_in_one() -> None:
    """Experience and scores of several chunks are equal to those of one, but for the time they take."""
    whole, parts = (PendingBatch(chunks=list(source([], prompts_per_chunk=size).stream(1))) for size in (7, 2))
    one, many = (merge(wait(pending.experience)) for pending in (whole, parts))
    for name in ("versions", "finish", "logprobs", "group_offsets"):
        np.testing.assert_array_equal(getattr(one, name), getattr(many, name))
    for name in ("completions", "prompt_tokens"):
        np.testing.assert_array_equal(getattr(one, name).values, getattr(many, name).values)
        np.testing.assert_array_equal(getattr(one, name).offsets, getattr(many, name).offsets)
    assert one.prompts == many.prompts
    scores = [merge_scores(wait(pending.scores or ())) for pending in (whole, parts)]
    assert scores[0].rewards.tolist() == scores[1].rewards.tolist()
    assert [score.seconds for score in scores] == [0.5, 2.0]  # one chunk after the other


def test_a_chunk_holds_the_tokens_of_all_engines_at_their_longest() -> None:
    config = RolloutConfig(max_prompt_length=100, max_completion_length=150, num_engines=2, tokens_per_chunk=1000)
    assert completions_per_chunk(config) == 8  # 2 · 1000 / 250
    assert completions_per_chunk(config.model_copy(update={"tokens_per_chunk": 10})) == 1


@pytest.mark.parametrize(("completions", "sizes"), [(None, [7]), (4, [2, 2, 2, 1]), (5, [2, 2, 2, 1]), (1, [1] * 7)])
def test_samples_that_are_not_stored_come_in_chunks_too(completions: int | None, sizes: list[int]) -> None:
    pending = sample(PROMPTS, SAMPLING, *gangs([], engines=2), completions_per_chunk=completions)
    assert [chunk.prompts for chunk in pending.chunks] == sizes
    assert [prompt.id for prompt in merge(wait(pending.experience)).prompts] == [prompt.id for prompt in PROMPTS]
    assert pending.scores is not None
    assert len(pending.scores) == len(sizes)


# ------------------------------------------------------------------------------------------------ back-pressure


def test_few_chunks_are_requested_before_earlier_ones_are_scored() -> None:
    events: Events = []
    store = CountingStore(events)
    for chunk in source(events, store, prompts_per_chunk=1).stream(0):
        events.append(f"use {chunk.index}")
    assert [event for event in events if not event.startswith(("rollout", "reward"))] == [
        "request 0.0",
        "request 0.1",
        "request 0.2",
        "use 0",  # whoever uses it may wait for it: the engines are busy meanwhile
        "use 1",
        "use 2",
        "wait for 0.0",
        "request 0.3",
        "use 3",
        "wait for 0.1",
        "request 0.4",
        "use 4",
        "wait for 0.2",
        "request 0.5",
        "use 5",
        "wait for 0.3",
        "request 0.6",
        "use 6",
        "wait for 0.4",
    ]
    assert store.most == UNSCORED == 3


def test_ahead_of_the_learner_all_chunks_are_requested_at_once() -> None:
    """A chunk that waited would be sampled from newer weights or not, depending on the clock."""
    events, begun = Events(), list[tuple[int, int]]()
    store = CountingStore(events)
    streamed = source(events, store, prompts_per_chunk=3, max_staleness=1, begun=begun)
    assert [chunk.index for chunk in streamed.stream(0)] == [0, 1, 2]
    assert begun == [(step, chunk) for step in (0, 1) for chunk in range(3)]
    assert not [event for event in events if event.startswith("wait")]
    begun.clear()
    assert [chunk.index for chunk in streamed.stream(1)] == [0, 1, 2]
    assert begun == [(2, 0), (2, 1), (2, 2)], "step 1 was requested before"


# ------------------------------------------------------------------------------------------------ dynamic sampling


class LevelReward(FakeReward):
    """Reward that differs within the groups of p5 and p6 only."""

    def score(self, parts: list[Experience], file_prefix: str | None = None) -> Scores:  # type: ignore[override]
        scores = super().score(parts)
        differs = np.array([prompt.id in ("p5", "p6") for part in parts for prompt in part.prompts for _ in range(2)])
        return Scores(rewards=scores.rewards * differs, by_scorer={}, chunk=scores.chunk)


def test_further_prompts_come_in_further_chunks_after_the_rewards_of_the_earlier_ones() -> None:
    """Sample in rounds of what is missing until none is left: 2 of 7 prompts have signal, and the step needs 3."""
    events: Events = []
    store = CountingStore(events)
    streamed = source(events, store, prompts_per_step=3, max_resamples=9, reward=LevelReward([]))
    chunks = list(streamed.stream(0))
    assert [chunk.index for chunk in chunks] == list(range(len(chunks)))
    assert sorted(name for chunk in chunks for name in prompts_of(chunk)) == [prompt.id for prompt in PROMPTS]
    rounds = [chunk.resample for chunk in chunks]
    assert rounds[:2] == [0, 0]
    assert rounds == sorted(rounds, key=lambda r: r or 0)
    assert PendingBatch(chunks=chunks).resamples == rounds[-1]
    for chunk in chunks[1:]:
        if chunk.resample != rounds[chunk.index - 1]:  # the first of a round
            assert events.index(f"wait for 0.{chunk.index - 1}") < events.index(f"request 0.{chunk.index}")


def test_without_dynamic_sampling_a_step_reports_no_rounds() -> None:
    assert PendingBatch(chunks=list(source([]).stream(0))).resamples is None
