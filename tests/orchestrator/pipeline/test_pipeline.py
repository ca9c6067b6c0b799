"""The phases of a step, one by one: sources of chunks, and publication of weights."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fakes import Events, FakeEncoder, FakeReward, FakeRollout, RecordedHandle, RecordingGang

from orchestrator.cluster.local import LocalGang
from orchestrator.pipeline.publishing import AdapterPublisher, EnginePublisher
from orchestrator.pipeline.sources import Chunk, DatasetSource, PendingBatch, RolloutSource, Source, sample
from workers.types import Example, Experience, Prompt, Sampling, Scores, merge
from workers.weights import Entry, Manifest, Rendezvous

# batch_indices(3, 2, step, seed=0) is [0 1], [2 1], [2 0]: the example of its docstring.
PROMPTS = [Prompt(id=f"p{i}", text="") for i in range(5)]
SAMPLING = Sampling(num_generations=2, max_completion_length=4)


def rollouts(events: Events, size: int = 1) -> Any:
    return LocalGang("rollout", [FakeRollout(events, index=i) for i in range(size)])


def rewards(events: Events) -> Any:
    return LocalGang("reward", [FakeReward(events)])


class RecordedBegin:
    """Callback that records the steps and the numbers of the chunks that were requested ahead."""

    def __init__(self) -> None:
        self.chunks: list[tuple[int, int]] = []

    def __call__(self, step: int, chunk: Chunk) -> None:
        self.chunks.append((step, chunk.index))


def take(source: Source, step: int) -> PendingBatch:
    return PendingBatch(chunks=list(source.stream(step)))


def rollout_source(events: Events, on_begin: RecordedBegin, *, max_staleness: int, max_steps: int = 3) -> RolloutSource:
    return RolloutSource(
        rollouts(events),
        rewards(events),
        PROMPTS[:3],
        SAMPLING,
        prompts_per_step=2,
        max_staleness=max_staleness,
        max_steps=max_steps,
        on_begin=on_begin,
    )


def prompts_of(pending: PendingBatch) -> list[list[str]]:
    return [[p.id for p in handle.result().prompts] for handle in pending.experience]


# ------------------------------------------------------------------------------------------------ sources


def test_prompts_are_shared_out_over_the_engines_in_order() -> None:
    events: Events = []
    pending = sample(PROMPTS, SAMPLING, rollouts(events, 2), rewards(events))
    assert events == [
        "rollout 0: generate p0 p1 from v0",
        "rollout 1: generate p2 p3 p4 from v0",
        "reward: score p0 p1 p2 p3 p4",
    ]
    assert prompts_of(pending) == [["p0", "p1"], ["p2", "p3", "p4"]]
    assert pending.scores is not None
    assert pending.scores[0].result().rewards.tolist() == [0, 1] * 5


def test_without_a_reward_gang_a_batch_waits_for_its_samples() -> None:
    events: Events = []
    pending = sample(PROMPTS[:2], SAMPLING, rollouts(events), None)
    pending.wait()
    assert events == ["rollout 0: generate p0 p1 from v0"]
    assert pending.scores is None


class LevelReward(FakeReward):
    """Reward that is equal for all completions of p0, p1 and p2, and differs for other prompts."""

    def score(self, parts: Sequence[Experience], keep: str | None = None) -> Scores:
        experience = merge(parts)
        self._events.append(f"reward: score {' '.join(p.id for p in experience.prompts)}")
        rewards = np.array([r for p in experience.prompts for r in (0, p.id in ("p3", "p4"))], np.float32)
        return Scores(rewards=rewards, by_scorer={}, seconds=0.5)


@pytest.mark.parametrize(
    ("max_staleness", "begun_by_step"),
    [(0, [[], [], []]), (1, [[0, 1], [2], []]), (2, [[0, 1, 2], [], []]), (8, [[0, 1, 2], [], []])],
)
def test_generation_runs_ahead_by_the_staleness_and_never_past_the_end(
    max_staleness: int, begun_by_step: list[list[int]]
) -> None:
    events, on_begin = Events(), RecordedBegin()
    source = rollout_source(events, on_begin, max_staleness=max_staleness)
    for step, begun in enumerate(begun_by_step):
        on_begin.chunks.clear()
        pending = take(source, step)
        assert on_begin.chunks == [(future, 0) for future in begun]
        assert prompts_of(pending) == [[["p0", "p1"], ["p2", "p1"], ["p2", "p0"]][step]]
    assert len([e for e in events if e.startswith("rollout")]) == 3


def test_a_dataset_is_encoded_one_step_ahead() -> None:
    events, on_begin = Events(), RecordedBegin()
    encoder: Any = LocalGang("dataset", [FakeEncoder(events)])
    rows = [Example(prompt=p, completions=("a",)) for p in PROMPTS[:3]]
    source = DatasetSource(encoder, rows, batch_size=2, seed=0, max_steps=3, on_begin=on_begin)
    assert prompts_of(take(source, 0)) == [["p0", "p1"]]
    assert events == ["encoder: encode p0 p1", "encoder: encode p2 p1"]
    assert prompts_of(take(source, 1)) == [["p2", "p1"]]
    assert prompts_of(take(source, 2)) == [["p2", "p0"]]
    assert events[2:] == ["encoder: encode p2 p0"]
    assert on_begin.chunks == [(0, 0), (1, 0), (2, 0)]


def test_a_step_takes_no_row_twice_if_the_dataset_is_smaller_than_a_batch() -> None:
    encoder: Any = LocalGang("dataset", [FakeEncoder(Events())])
    rows = [Example(prompt=p, completions=("a",)) for p in PROMPTS[:3]]
    source = DatasetSource(encoder, rows, batch_size=5, seed=0, max_steps=3, on_begin=RecordedBegin())
    assert [sorted(source.rows(step)) for step in range(3)] == [[0, 1, 2]] * 3


def test_a_pending_batch_waits_for_its_last_part() -> None:
    events: Events = []
    sampled, scored = (RecordedHandle(name, None, events) for name in ("experience", "scores"))
    PendingBatch(
        chunks=[
            Chunk(index=0, prompts=1, experience=[sampled], scores=[scored, scored]),
            Chunk(index=1, prompts=1, experience=[sampled], scores=None),
        ]
    ).wait()
    assert events == [
        "wait for scores to be there",
        "wait for scores to be there",
        "wait for experience to be there",
    ]


# ------------------------------------------------------------------------------------------------ dynamic sampling


def dynamic_source(events: Events, *, max_resamples: int, num_prompts: int = 5) -> RolloutSource:
    return RolloutSource(
        rollouts(events),
        LocalGang("reward", [LevelReward(events)]),  # type: ignore[arg-type]
        PROMPTS[:num_prompts],
        SAMPLING,
        prompts_per_step=2,
        max_staleness=0,
        max_steps=8,
        on_begin=RecordedBegin(),
        max_resamples=max_resamples,
    )


def test_groups_without_signal_are_replaced_by_further_prompts() -> None:
    """Only p3 and p4 have signal. Prompts are sampled, none twice, until two groups have it."""
    rounds = set()
    for step in range(8):
        events: Events = []
        source = dynamic_source(events, max_resamples=4)
        first = [f"p{row}" for row in source.rows(step)]
        pending = take(source, step)
        taken = [name for part in prompts_of(pending) for name in part]
        further = taken[2:]
        assert taken[:2] == first
        assert sum(name in ("p3", "p4") for name in taken) == 2
        assert len(set(further) - set(first)) == len(further)
        assert pending.scores is not None
        assert pending.resamples == len(pending.scores) - 1
        assert prompts_of(take(dynamic_source([], max_resamples=4), step)) == prompts_of(pending)
        rounds.add(pending.resamples)
    assert {0, 1, 2} <= rounds


def test_resampling_ends_at_its_limit_and_with_the_prompts() -> None:
    assert {take(dynamic_source([], max_resamples=1), step).resamples for step in range(8)} == {0, 1}
    without_signal = take(dynamic_source([], max_resamples=3, num_prompts=3), 0)
    assert sorted(name for part in prompts_of(without_signal) for name in part) == ["p0", "p1", "p2"]
    assert without_signal.resamples == 1


# ------------------------------------------------------------------------------------------------ publishing

MANIFEST = Manifest(entries=(Entry(name="w", dtype="float32", shape=(1,), offset=0),))


def publisher(
    events: Events, *, cuda: bool, engines: int = 1, parallel: int = 1
) -> tuple[EnginePublisher, RecordingGang, RecordingGang]:
    policy = RecordingGang("policy", 2, {"open_weights": MANIFEST, "send_weights": 0.5}, events)
    rollout = RecordingGang("rollout", engines, {"receive_weights": 0.25}, events)
    gangs: tuple[Any, Any] = policy, rollout
    publisher = EnginePublisher(*gangs, cuda=cuda, segment="/dev/shm/x", tensor_parallel_size=parallel)
    return publisher, policy, rollout


def test_a_publication_waits_until_the_one_before_it_was_received() -> None:
    events: Events = []
    through_memory, _, _ = publisher(events, cuda=False)
    events.clear()
    assert through_memory.publish(1) == {"timing/publish": 0.5}
    assert through_memory.publish(2) == {"timing/publish": 0.5, "timing/receive": 0.25}
    assert events == [
        "policy.send_weights",
        "rollout.receive_weights",
        "wait for policy.send_weights 0",
        "wait for policy.send_weights 1",
        "wait for rollout.receive_weights 0",
        "policy.send_weights",
        "rollout.receive_weights",
        "wait for policy.send_weights 0",
        "wait for policy.send_weights 1",
    ]


def test_through_memory_an_engine_reads_after_the_learner_has_written() -> None:
    through_memory, policy, rollout = publisher([], cuda=False)
    through_memory.publish(7)
    assert policy.arguments == [("/dev/shm/x", None), ()]
    ((manifest, version, after),) = rollout.arguments
    assert (manifest, version) == (MANIFEST, 7)
    assert [handle.name for handle in after] == ["policy.send_weights 0", "policy.send_weights 1"]


def test_over_nccl_both_ends_run_at_once() -> None:
    over_nccl, policy, rollout = publisher([], cuda=True, engines=3, parallel=4)
    over_nccl.publish(7)
    # One sender, and four workers in each of three engines.
    assert policy.arguments == [(None, Rendezvous(address="10.0.0.7", port=29500, world_size=13)), ()]
    assert rollout.arguments == [(MANIFEST, 7, None)]


def test_an_adapter_is_removed_when_its_successor_was_received(tmp_path: Path) -> None:
    events: Events = []
    (tmp_path / "adapters" / "version-9").mkdir(parents=True)  # left by an attempt that was killed
    gangs: tuple[Any, Any] = (
        RecordingGang("policy", 2, {"send_adapter": 0.5}, events),
        RecordingGang("rollout", 1, {"receive_adapter": 0.25}, events),
    )
    publisher = AdapterPublisher(*gangs, directory=tmp_path / "adapters")
    kept = []
    for version in (1, 2, 3):
        publisher.publish(version)
        (tmp_path / "adapters" / f"version-{version}").mkdir(parents=True)  # as the learner would
        kept.append(sorted(p.name for p in (tmp_path / "adapters").iterdir()))
    assert kept == [["version-1"], ["version-1", "version-2"], ["version-2", "version-3"]]
    assert events[:7] == [
        "policy.send_adapter",
        "rollout.receive_adapter",
        "wait for policy.send_adapter 0",
        "wait for policy.send_adapter 1",
        "wait for rollout.receive_adapter 0",
        "policy.send_adapter",
        "rollout.receive_adapter",
    ]
    directory, version, after = gangs[1].arguments[0]
    assert (Path(directory).name, version) == ("version-1", 1)
    assert len(after) == 2, "it is read after every rank has written"
