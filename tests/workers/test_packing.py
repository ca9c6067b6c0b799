from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from workers.packing import cut, cut_batch, input_lengths, members, pack, plan, updates
from workers.ragged import Ragged
from workers.types import TrainBatch


def test_the_example_of_the_docstring() -> None:
    packed = pack(Ragged.of([[1, 2, 3]]), Ragged.of([[10, 11, 12], [20, 21, 22, 23]]), np.array([0, 2]), np.array([0]))
    assert packed.tokens.tolist() == [1, 2, 3, 10, 11, 20, 21, 22]
    assert packed.positions.tolist() == [0, 1, 2, 3, 4, 3, 4, 5]
    assert packed.segments.tolist() == [0, 0, 0, 1, 1, 2, 2, 2]
    assert packed.targets.tolist() == [10, 11, 12, 20, 21, 22, 23]
    assert packed.predictors.tolist() == [2, 3, 4, 2, 5, 6, 7]
    assert packed.row_lengths.tolist() == [8]
    assert packed.row_sizes.tolist() == [2]
    assert packed.completion_lengths.tolist() == [3, 4]


def test_some_rows_in_an_order_of_their_own() -> None:
    # Rows: (1 2 | 10), (3 | 20 21, 30), (4 | 40). A completion of one token has no inputs.
    prompts, completions = Ragged.of([[1, 2], [3], [4]]), Ragged.of([[10], [20, 21], [30], [40]])
    packed = pack(prompts, completions, np.array([0, 1, 3, 4]), np.array([1, 0]))
    assert packed.tokens.tolist() == [3, 20, 1, 2]
    assert packed.positions.tolist() == [0, 1, 0, 1]
    assert packed.segments.tolist() == [0, 1, 0, 0]
    assert packed.targets.tolist() == [20, 21, 30, 10]
    assert packed.predictors.tolist() == [0, 1, 0, 3]
    assert packed.row_lengths.tolist() == [2, 2]
    assert packed.row_sizes.tolist() == [2, 1]


def test_input_lengths_and_members() -> None:
    prompts, completions, offsets = Ragged.of([[1, 2], [3]]), Ragged.of([[10], [20, 21], [30]]), np.array([0, 1, 3])
    assert input_lengths(prompts, completions, offsets).tolist() == [2 + 0, 1 + 1 + 0]
    assert members(offsets, np.array([1, 0])).tolist() == [1, 2, 0]


# ------------------------------------------------------------------------------------------------ plan


def rows_of(planned: list[list[np.ndarray]]) -> list[list[list[int]]]:
    return [[rows.tolist() for rows in rank] for rank in planned]


def test_a_plan_by_hand() -> None:
    # Longest first, each into the emptier of two bins: 5→a 4→b 3→b(7) 3→a(8) 3→b(10). The fuller bin goes to rank 0.
    assert rows_of(plan([5, 4, 3, 3, 3], num_ranks=2, budget=10)) == [[[1, 2, 4]], [[0, 3]]]


def test_a_budget_that_is_too_small_for_two_bins_takes_four() -> None:
    # Two bins would have to hold 9 each, the best split is 10 + 8. Four bins: 5, 4, 3 + 3, 3; the fullest go first.
    assert rows_of(plan([5, 4, 3, 3, 3], num_ranks=2, budget=9)) == [[[2, 4], [1]], [[0], [3]]]


def test_ranks_without_rows_still_get_their_micro_batch() -> None:
    assert rows_of(plan([7], num_ranks=3, budget=100)) == [[[0]], [[]], [[]]]
    assert rows_of(plan([], num_ranks=2, budget=100)) == [[[]], [[]]]


@settings(derandomize=True, deadline=None, max_examples=200)
@given(st.lists(st.integers(1, 40), max_size=30), st.integers(1, 4), st.integers(1, 90))
def test_every_plan(lengths: list[int], num_ranks: int, budget: int) -> None:
    planned = rows_of(plan(lengths, num_ranks, budget))
    bins = [rows for rank in planned for rows in rank]
    assert len(planned) == num_ranks
    assert len({len(rank) for rank in planned}) == 1
    assert sorted(itertools.chain(*bins)) == list(range(len(lengths)))
    loads = [sum(lengths[i] for i in rows) for rows in bins]
    assert all(load <= budget or len(rows) == 1 for load, rows in zip(loads, bins, strict=True))
    # Greedy: the fullest bin was the emptiest before it took its last row.
    assert max(loads) <= sum(loads) / len(loads) + max(lengths, default=0)


@pytest.mark.parametrize("seed", range(5))
def test_balance_is_within_a_third_of_the_best_there_is(seed: int) -> None:
    lengths = np.random.Generator(np.random.Philox(seed)).integers(1, 20, 7)
    best = min(
        max(sum(lengths[i] for i in range(7) if where[i] == b) for b in range(3))
        for where in itertools.product(range(3), repeat=7)
    )
    ours = max(int(lengths[rank[0]].sum()) for rank in plan(lengths, num_ranks=3, budget=1000))
    assert ours <= best * 4 / 3


# ------------------------------------------------------------------------------------------------ rows too long


def test_a_long_row_is_cut_between_completions() -> None:
    # 3 + 4 x 5 = 23 positions, and a row of 3 + 5; at a budget of 15 two completions go with each prompt.
    prompts, completions = Ragged.of([[1, 2, 3], [4, 5, 6]]), Ragged.of([[7] * 6] * 5)
    cut_prompts, offsets, parts = cut(prompts, completions, np.array([0, 4, 5]), budget=15)
    assert [p.tolist() for p in cut_prompts] == [[1, 2, 3], [1, 2, 3], [4, 5, 6]]
    assert offsets.tolist() == [0, 2, 4, 5]
    assert parts.tolist() == [0, 2, 3]
    assert input_lengths(cut_prompts, completions, offsets).tolist() == [13, 13, 8]
    # Read at the token, a completion takes one more position: 3 + 6 + 6 fits a budget of 15, but not of 14.
    assert len(cut(prompts, completions, np.array([0, 4, 5]), budget=15, pad=0)[1]) == 4
    assert len(cut(prompts, completions, np.array([0, 4, 5]), budget=14, pad=0)[1]) == 6


def test_what_is_short_enough_is_left_as_it_is() -> None:
    prompts, completions, offsets = Ragged.of([[1, 2, 3]]), Ragged.of([[7] * 6] * 4), np.array([0, 4])
    same, same_offsets, parts = cut(prompts, completions, offsets, budget=23)
    assert same is prompts
    assert same_offsets is offsets
    assert parts.tolist() == [0, 1]


rows_strategy = st.lists(st.tuples(st.integers(1, 9), st.lists(st.integers(1, 12), max_size=6)), max_size=6)


@settings(derandomize=True, deadline=None, max_examples=300)
@given(rows_strategy, st.integers(1, 60), st.sampled_from([None, 0]))
def test_every_cut(rows: list[tuple[int, list[int]]], budget: int, pad: int | None) -> None:
    prompts = Ragged.of([[i] * length for i, (length, _) in enumerate(rows)])
    completions = Ragged.of([[7] * length for _, lengths in rows for length in lengths])
    offsets = np.cumsum([0, *(len(lengths) for _, lengths in rows)])
    cut_prompts, cut_offsets, parts = cut(prompts, completions, offsets, budget, pad)
    lengths, sizes = input_lengths(cut_prompts, completions, cut_offsets, pad), np.diff(cut_offsets)
    assert all(length <= budget or size <= 1 for length, size in zip(lengths, sizes, strict=True))
    assert cut_offsets[parts].tolist() == offsets.tolist()  # no completion has moved to another row
    for row in range(len(rows)):
        of_row = range(parts[row], parts[row + 1])
        assert all(cut_prompts[part].tolist() == prompts[row].tolist() for part in of_row)
        if input_lengths(prompts, completions, offsets, pad)[row] <= budget:
            assert len(of_row) == 1
        for part in of_row[:-1]:  # no two neighbours fit into one
            first = completions.lengths[cut_offsets[part + 1]] - (pad is None)
            assert lengths[part] + first > budget


def test_the_rows_of_an_update_are_cut_for_it() -> None:
    prompts, completions = Ragged.of([[1], [2], [3]]), Ragged.of([[7] * 4] * 7)
    batch = TrainBatch(prompts=prompts, completions=completions, row_offsets=np.array([0, 3, 4, 7]))
    parts, rows, row_of = cut_batch(batch, np.array([2, 1]), budget=7)
    assert parts.row_offsets.tolist() == [0, 2, 3, 4, 6, 7]
    assert rows.tolist() == [3, 4, 2]
    assert row_of.tolist() == [0, 0, 1, 2, 2]
    paired = TrainBatch(
        prompts=prompts, completions=completions, row_offsets=batch.row_offsets, margins=np.zeros(3, np.float32)
    )
    with pytest.raises(AssertionError, match="margin"):
        cut_batch(paired, np.array([2, 1]), budget=7)


# ------------------------------------------------------------------------------------------------ updates


def batch_of(num_rows: int) -> TrainBatch:
    rows = Ragged.of([[1]] * num_rows)
    return TrainBatch(prompts=rows, completions=rows, row_offsets=np.arange(num_rows + 1))


def test_one_update_per_pass_takes_the_rows_as_they_come() -> None:
    assert [u.tolist() for u in updates(batch_of(3), epochs=2, num_updates=1, seed=0)] == [[0, 1, 2], [0, 1, 2]]


def test_every_pass_takes_each_row_once_in_an_order_of_its_own() -> None:
    found = [u.tolist() for u in updates(batch_of(20), epochs=2, num_updates=3, seed=1)]
    assert [len(u) for u in found] == [7, 7, 6, 7, 7, 6]
    first, second = (list(itertools.chain(*of_pass)) for of_pass in (found[:3], found[3:]))
    assert sorted(first) == sorted(second) == list(range(20))
    assert first != second
    assert [u.tolist() for u in updates(batch_of(20), epochs=2, num_updates=3, seed=1)] == found
    assert [u.tolist() for u in updates(batch_of(20), epochs=2, num_updates=3, seed=2)] != found


def test_a_step_without_rows_has_no_update() -> None:
    assert updates(batch_of(0), epochs=4, num_updates=0, seed=0) == []


# ------------------------------------------------------------------------------------------------ read at the token


def test_a_reward_model_reads_at_the_token() -> None:
    # Rows: (1 2 | 10 11, 20), (3 | 30): the last token is an input as well.
    prompts, completions, offsets = Ragged.of([[1, 2], [3]]), Ragged.of([[10, 11], [20], [30]]), np.array([0, 2, 3])
    packed = pack(prompts, completions, offsets, np.array([0, 1]), pad=0)
    assert packed.tokens.tolist() == [1, 2, 10, 11, 20, 3, 30]
    assert packed.positions.tolist() == [0, 1, 2, 3, 2, 0, 1]
    assert packed.segments.tolist() == [0, 0, 1, 1, 2, 0, 1]
    assert packed.predictors.tolist() == [2, 3, 4, 6]
    assert packed.row_lengths.tolist() == input_lengths(prompts, completions, offsets, pad=0).tolist() == [5, 2]


def test_padding_tokens_are_skipped() -> None:
    # 0 is padding: `5 0 6 0 0` is read at 6 in the end, `0 7 0` at the prompt, 7 and 7, and `0` at the prompt.
    prompts, completions = Ragged.of([[1, 2]]), Ragged.of([[5, 0, 6, 0, 0], [0, 7, 0], [0]])
    packed = pack(prompts, completions, np.array([0, 3]), np.array([0]), pad=0)
    assert packed.tokens.tolist() == [1, 2, 5, 0, 6, 0, 0, 0, 7, 0, 0]
    assert packed.tokens[packed.predictors].tolist() == [5, 5, 6, 6, 6, 2, 7, 7, 2]
    assert packed.predictors.tolist() == [2, 2, 4, 4, 4, 1, 8, 8, 1]
