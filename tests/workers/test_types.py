from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from fakes import experience
from hypothesis import given, settings
from hypothesis import strategies as st

from workers.ragged import Ragged, concat
from workers.stats import StepStats, merge_stats
from workers.types import Finish, Scores, TokenShard, TrainBatch, assemble, merge, merge_scores, merge_shards

FOUR = Ragged.of([[5, 6], [7], [], [8, 9, 1]])


def test_sequences_lie_one_after_the_other() -> None:
    assert FOUR.values.tolist() == [5, 6, 7, 8, 9, 1]
    assert FOUR.values.dtype == np.int32
    assert FOUR.offsets.tolist() == [0, 2, 3, 3, 6]
    assert FOUR.lengths.tolist() == [2, 1, 0, 3]
    assert [s.tolist() for s in FOUR] == [[5, 6], [7], [], [8, 9, 1]]


def test_an_empty_list_is_a_ragged() -> None:
    nothing = Ragged.of([])
    assert (len(nothing), nothing.values.tolist(), nothing.offsets.tolist()) == (0, [], [0])


def test_take_by_hand() -> None:
    taken = FOUR.take(np.array([3, 0]))
    assert FOUR.positions(np.array([3, 0])).tolist() == [3, 4, 5, 0, 1]
    assert taken.values.tolist() == [8, 9, 1, 5, 6]
    assert taken.offsets.tolist() == [0, 3, 5]


@settings(derandomize=True, deadline=None, max_examples=50)
@given(st.lists(st.lists(st.integers(0, 99), max_size=4), min_size=1, max_size=6), st.data())
def test_take_gives_the_sequences_that_were_named(sequences: list[list[int]], data: st.DataObject) -> None:
    indices = data.draw(st.lists(st.integers(0, len(sequences) - 1), max_size=8))
    taken = Ragged.of(sequences).take(np.array(indices, np.int64))
    assert [s.tolist() for s in taken] == [sequences[i] for i in indices]


def test_concat() -> None:
    both = concat([FOUR, Ragged.of([[2, 2]])])
    assert both.values.tolist() == [5, 6, 7, 8, 9, 1, 2, 2]
    assert both.offsets.tolist() == [0, 2, 3, 3, 6, 8]


# ------------------------------------------------------------------------------------------------ merge


def test_merge_keeps_groups_whole_and_in_order() -> None:
    first = experience(
        [([1], [[10, 11], [12]])], logprobs=[-1, -2, -3], version=4, num_dropped=1, num_truncated=2, seconds=1.5
    )
    finish = np.array([Finish.length, Finish.stop, Finish.aborted], np.int32)
    groups = [([2, 3], [[13]]), ([4], [[14], [15]])]
    second = experience(groups, logprobs=[-4, -5, -6], version=5, finish=finish, seconds=0.5)
    whole = merge([first, second])
    assert [p.tolist() for p in whole.prompt_tokens] == [[1], [2, 3], [4]]
    assert [c.tolist() for c in whole.completions] == [[10, 11], [12], [13], [14], [15]]
    assert whole.group_offsets.tolist() == [0, 2, 3, 5]
    assert whole.group_of.tolist() == [0, 0, 1, 2, 2]
    assert whole.logprobs is not None
    assert whole.logprobs.tolist() == [-1, -2, -3, -4, -5, -6]
    assert whole.versions.tolist() == [4, 4, 5, 5, 5]
    assert whole.finish.tolist() == [0, 0, 1, 0, 2]
    assert [p.id for p in whole.prompts] == ["p0", "p0", "p1"]
    assert (whole.num_dropped, whole.num_truncated, whole.seconds) == (1, 2, 1.5)


def test_merge_of_one_is_that_one() -> None:
    alone = experience([([1], [[2]])])
    assert merge([alone]) is alone


def test_parts_of_a_chunk_are_made_at_the_same_time_and_chunks_one_after_the_other() -> None:
    parts = [
        experience([([1], [[2]])], chunk=chunk, seconds=seconds)
        for chunk, seconds in ((0, 3.0), (0, 1.0), (1, 0.5), (1, 2.0))
    ]
    whole = merge(parts)
    assert (whole.seconds, whole.chunk) == (5.0, 0)
    scores = [Scores(rewards=np.float32([1]), by_scorer={}, seconds=p.seconds, chunk=p.chunk) for p in parts]
    assert merge_scores(scores).seconds == 5.0


def test_a_field_that_one_part_lacks_is_none_after_the_merge() -> None:
    sampled = experience([([1], [[2]])], logprobs=[-1], rewards=[1])
    read = experience([([1], [[2]])])
    whole = merge([sampled, read])
    assert whole.logprobs is None
    assert whole.rewards is None


def test_merge_scores() -> None:
    parts = [
        Scores(rewards=np.float32([1, 2]), by_scorer={"a": np.float32([1, 2])}, seconds=0.25),
        Scores(rewards=np.float32([3]), by_scorer={"a": np.float32([np.nan])}, seconds=0.75),
    ]
    whole = merge_scores(parts)
    assert whole.rewards.tolist() == [1, 2, 3]
    assert whole.by_scorer["a"].tolist() == pytest.approx([1, 2, np.nan], nan_ok=True)
    assert whole.seconds == 0.75


def test_merge_stats_adds_sums_and_keeps_the_largest_and_the_facts() -> None:
    parts = [
        StepStats(sums={"loss": 0.25}, maxima={"gap": 0.5}, facts={"reward": 3.0}),
        StepStats(sums={"loss": 0.5}, maxima={"gap": 0.125}, facts={"reward": 3.0}),
    ]
    assert merge_stats(parts) == {"loss": 0.75, "gap": 0.5, "reward": 3.0}


# ------------------------------------------------------------------------------------------------ assemble


def share(completions: list[int], values: list[float]) -> TokenShard:
    return TokenShard(completions=np.array(completions, np.int64), values=np.array(values, np.float32))


def test_assemble_puts_every_share_in_its_place() -> None:
    completions = Ragged.of([[1, 1], [2], [3, 3]])
    whole = assemble([share([2, 0], [30, 31, 10, 11]), share([1], [20])], completions)
    assert whole.tolist() == [10, 11, 20, 30, 31]


@pytest.mark.parametrize(
    ("given_shares", "message"),
    [
        ([share([1], [20])], "4 of 5 tokens have no value, or NaN"),
        ([share([0, 1, 2], [1, 2, np.nan, 4, 5])], "1 of 5 tokens have no value, or NaN"),
    ],
    ids=["a share is missing", "a number is not one"],
)
def test_assemble_refuses_a_token_without_a_number(given_shares: list[TokenShard], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        assemble(given_shares, Ragged.of([[1, 1], [2], [3, 3]]))


def test_shards_of_several_chunks_refer_to_the_merged_experience() -> None:
    """Chunk 0 has two parts with 3 completions, chunk 4 has 2. The shards of two ranks come in any order."""
    parts = [
        experience([([1], [[10], [11, 12]])], chunk=0),
        experience([([1], [[13]])], chunk=0),
        experience([([1], [[14], [15]])], chunk=4),
    ]
    shards = [share([1, 0], [15, 14]), share([2, 0], [13, 10]), share([1], [11, 12])]
    shards[0] = replace(shards[0], chunk=4)
    merged = merge_shards(shards, parts)
    assert [shard.completions.tolist() for shard in merged] == [[4, 3], [2, 0], [1]]
    completions = merge(parts).completions
    assert assemble(merged, completions).tolist() == completions.values.tolist()
    assert shards[0].completions.tolist() == [1, 0], "the shards that were given are not changed"


# ------------------------------------------------------------------------------------------------ TrainBatch


def test_rows_must_cover_prompts_and_completions() -> None:
    with pytest.raises(ValueError, match="1 rows do not cover 2 prompts, 2 completions"):
        TrainBatch(prompts=Ragged.of([[1], [1]]), completions=Ragged.of([[2], [3]]), row_offsets=np.array([0, 2]))
    with pytest.raises(ValueError, match="1 rows do not cover 1 prompts, 2 completions"):
        TrainBatch(prompts=Ragged.of([[1]]), completions=Ragged.of([[2], [3]]), row_offsets=np.array([0, 1]))


@pytest.mark.parametrize("name", ["old_logprobs", "reference_logprobs", "advantages", "old_values", "returns"])
def test_token_fields_are_as_long_as_the_tokens(name: str) -> None:
    with pytest.raises(ValueError, match=rf"TrainBatch.{name} has shape \(1,\) for 2 tokens"):
        TrainBatch(
            prompts=Ragged.of([[1]]),
            completions=Ragged.of([[2, 3]]),
            row_offsets=np.array([0, 1]),
            **{name: np.zeros(1, np.float32)},
        )
