"""A step in several spans, or of several chunks, makes the same updates and reports the same metrics as in one."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from fakes import experience
from methods import GROUPS, REWARDS
from torch_engine import TorchEngine, learner_of

from workers.ragged import Ragged
from workers.spans import UpdateRange, merge_spans, of_update
from workers.stats import StepStats, merge_ranks
from workers.types import Experience, Scores, TokenShard, assemble, merge, merge_shards

DPO = {"type": "dpo", "batch_size": 1, "num_iterations": 2, "learning_rate": 0.01}
PAIRS = [([3, 4], [[6, 7, 1], [5, 1]]), ([9], [[5, 1], [7, 7, 1]]), ([11], [[4, 1], [1]])]
UPDATES = 6  # three pairs, twice


def pairs() -> list[Experience]:
    return [experience(PAIRS, rewards=[1.0, 0.0] * 3)]


def learn(model: Path, *spans: UpdateRange) -> tuple[StepStats, TorchEngine]:
    """Make one step on PAIRS, with a reference equal to the policy."""
    learner, engine = learner_of(model, DPO)
    parts = pairs()
    reference = [learner.infer(parts)]
    first, *others = spans
    stats = [learner.step(0, parts, None, reference, None, span=first)]
    stats += [learner.more(0, span) for span in others]
    return merge_spans([merge_ranks([s]) for s in stats]), engine


def assert_same_weights(one: TorchEngine, other: TorchEngine) -> None:
    for name, weight in one.weights():
        assert torch.equal(weight, dict(other.weights())[name]), name


@pytest.mark.parametrize("cut", [1, 2, 5])
def test_two_spans_are_the_step(model: Path, cut: int) -> None:
    whole, once = learn(model, UpdateRange())
    parts, twice = learn(model, UpdateRange(first=0, count=cut), UpdateRange(first=cut))
    assert whole.facts["num_updates"] == parts.facts["num_updates"] == UPDATES
    assert parts.left == whole.left == 0
    assert_same_weights(once, twice)
    for kind in ("sums", "maxima", "minima"):
        assert getattr(parts, kind) == pytest.approx(getattr(whole, kind), rel=1e-6), kind
    clocks = {"timing/learn"}
    assert {n: v for n, v in parts.facts.items() if n not in clocks} == pytest.approx(
        {n: v for n, v in whole.facts.items() if n not in clocks}, rel=1e-6
    )


@pytest.mark.parametrize("cut", [1, 4])
def test_a_learner_that_is_loaded_within_a_step_goes_on_to_the_bit(model: Path, tmp_path: Path, cut: int) -> None:
    """Make one update per call, as the driver does. After a resume `step` begins at the update that is next."""
    every = [UpdateRange(first=i, count=1) for i in range(UPDATES)]
    whole, once = learn(model, *every)
    learner, engine = learner_of(model, DPO)
    parts, reference = pairs(), [learner.infer(pairs())]
    stats = [learner.step(0, parts, None, reference, None, span=every[0])]
    stats += [learner.more(0, span) for span in every[1:cut]]
    learner.save(str(tmp_path / "state"), {})
    resumed, resumed_engine = learner_of(model, DPO, draw=7)
    resumed.load(str(tmp_path / "state"))
    stats.append(resumed.step(0, parts, None, reference, None, span=every[cut]))
    stats += [resumed.more(0, span) for span in every[cut + 1 :]]
    assert_same_weights(once, resumed_engine)
    assert engine is not resumed_engine
    merged = merge_spans([merge_ranks([s]) for s in stats])
    for kind in ("sums", "maxima", "minima", "left"):
        assert getattr(merged, kind) == getattr(whole, kind), kind
    assert merged.facts["grad_norm"] == whole.facts["grad_norm"]


def test_a_further_span_needs_its_step(model: Path) -> None:
    learner, _ = learner_of(model, DPO)
    learner.step(0, pairs(), None, [learner.infer(pairs())], None)
    with pytest.raises(AssertionError):
        learner.more(0, UpdateRange(first=1, count=1))  # all its updates are made


def test_each_update_has_its_own_means(model: Path) -> None:
    """The step's mean of each metric is the mean over its updates, all of one pair."""
    whole, _ = learn(model, UpdateRange())
    learner, _ = learner_of(model, DPO)
    stats = [learner.step(0, pairs(), None, [learner.infer(pairs())], None, span=UpdateRange(first=0, count=1))]
    stats += [learner.more(0, UpdateRange(first=i, count=1)) for i in range(1, UPDATES)]
    rows = [of_update(merge_ranks([s]), UPDATES) for s in stats]
    for name in ("loss", "rewards/margins", "grad_norm"):
        of_step = {**whole.sums, **whole.facts}[name]
        assert np.mean([row[name] for row in rows]) == pytest.approx(of_step, rel=1e-6), name
    assert len({row["loss"] for row in rows}) == UPDATES
    assert not [name for row in rows for name in row if name.startswith(("sampling/", "timing/", "num_"))]


# ------------------------------------------------------------------------------------------------ chunks

GRPO = {"type": "grpo", "beta": 0.1, "num_mini_batches": 2, "learning_rate": 0.01}


def chunked(sizes: Sequence[int], engines: int) -> list[Experience]:
    """Return GROUPS of the methods' tests in chunks of `sizes` groups, each in one part per engine."""
    parts, first = [], 0
    for chunk, size in enumerate(sizes):
        for i in range(engines):
            begin, end = (first + size * j // engines for j in (i, i + 1))
            groups = GROUPS[begin:end]
            num_tokens = sum(len(tokens) for _, group in groups for tokens in group)
            before = sum(len(tokens) for _, group in GROUPS[:begin] for tokens in group)
            logprobs = [-2.5 - 0.01 * (before + t) for t in range(num_tokens)]
            parts.append(experience(groups, logprobs=logprobs, chunk=chunk))
        first += size
    return parts


def cut_to(shard: TokenShard, completions: Ragged, first: int, last: int, chunk: int) -> TokenShard:
    """Return the part of a shard of all completions that is of completions `first` to `last`, as of that chunk."""
    tokens = slice(completions.offsets[first], completions.offsets[last])
    return TokenShard(completions=np.arange(last - first), values=shard.values[tokens], chunk=chunk)


@pytest.mark.parametrize("engines", [1, 2])
@pytest.mark.parametrize("sizes", [[4], [2, 2], [1, 2, 1]])
def test_several_chunks_are_the_step_in_one_to_the_bit(qwen2: Path, sizes: list[int], engines: int) -> None:
    """Scores and reference shards come per chunk, by index within the chunk; shards in another order than chunks."""
    learner, once = learner_of(qwen2, GRPO)
    whole = chunked([4], 1)
    rewards = np.float32(REWARDS)
    reference = learner.infer(whole)
    expected = learner.step(0, whole, [Scores(rewards=rewards, by_scorer={})], [reference], None)

    parts = chunked(sizes, engines)
    counts = [sum(len(p.completions) for p in parts if p.chunk == chunk) for chunk in range(len(sizes))]
    ends = np.cumsum([0, *counts]).tolist()
    scores = [Scores(rewards=rewards[a:b], by_scorer={}, chunk=i) for i, (a, b) in enumerate(pairwise(ends))]
    shards = [cut_to(reference, whole[0].completions, a, b, i) for i, (a, b) in enumerate(pairwise(ends))]
    split, many = learner_of(qwen2, GRPO)
    found = split.step(0, parts, scores, shards[::-1], None)
    assert_same_weights(once, many)
    assert (found.sums, found.maxima, found.minima) == (expected.sums, expected.maxima, expected.minima)


def test_a_shard_that_is_computed_per_chunk_is_that_of_the_whole(qwen2: Path) -> None:
    """Two ranks score two chunks: each completion once, up to the rounding of other micro-batches."""
    parts = chunked([3, 1], 2)
    ranks = [learner_of(qwen2, GRPO, rank=rank, world_size=2)[0] for rank in range(2)]
    shards = [rank.infer([p for p in parts if p.chunk == chunk]) for chunk in range(2) for rank in ranks]
    assert {shard.chunk for shard in shards} == {0, 1}
    completions = merge(parts).completions
    alone = learner_of(qwen2, GRPO)[0].infer(chunked([4], 1))
    np.testing.assert_allclose(
        assemble(merge_shards(shards, parts), completions), assemble([alone], completions), rtol=1e-5, atol=1e-5
    )


# ------------------------------------------------------------------------------------------------ statistics


def test_a_span_reports_the_remaining_updates(model: Path) -> None:
    stats, _ = learn(model, UpdateRange(first=0, count=2))
    assert (stats.left, stats.facts["num_updates"]) == (4, 2)


def test_mean_norms_are_of_all_updates() -> None:
    def stats(norm: float, updates: float) -> StepStats:
        facts = {"grad_norm": norm, "num_updates": updates, "timing/learn": 1.0}
        return StepStats(sums={"loss": 0.25}, maxima={"m": norm}, minima={"m": norm}, facts=facts, left=1)

    found = merge_spans([stats(1.0, 3.0), stats(5.0, 1.0)])
    assert found.facts == {"grad_norm": 2.0, "num_updates": 4.0, "timing/learn": 2.0}  # (1 · 3 + 5 · 1) / 4
    assert (found.sums, found.maxima, found.minima) == ({"loss": 0.5}, {"m": 5.0}, {"m": 1.0})


def test_spans_without_updates_have_no_mean_norm() -> None:
    empty = StepStats(sums={}, maxima={}, facts={"num_updates": 0.0})
    assert merge_spans([empty, empty]).facts == {"num_updates": 0.0, "timing/learn": 0}
