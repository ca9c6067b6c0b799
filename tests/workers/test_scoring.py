from __future__ import annotations

import numpy as np
import pytest
from fakes import experience

from workers.packing import Packed
from workers.scoring import ScoreCache, row_keys, score_tokens
from workers.types import Floats, TokenShard, assemble

GROUPS = [([3], [[10, 11], [12]]), ([3, 4], [[13, 14, 15]]), ([5], [[16], [17]])]  # input lengths 2, 4 and 1


class Echo:
    """Model that scores every token with itself, and records its calls."""

    def __init__(self) -> None:
        self.calls: list[list[int]] = []

    def __call__(self, packed: Packed) -> Floats:
        self.calls.append(packed.targets.tolist())
        return packed.targets.astype(np.float32)


def score(parts: list[object], world_size: int, budget: int) -> tuple[list[TokenShard], list[Echo]]:
    echoes = [Echo() for _ in range(world_size)]
    shares = [
        score_tokens(parts, echoes[rank], rank=rank, world_size=world_size, budget=budget)  # type: ignore[arg-type]
        for rank in range(world_size)
    ]
    return shares, echoes


@pytest.mark.parametrize("budget", [100, 4, 1])
@pytest.mark.parametrize("world_size", [1, 2, 5])
def test_ranks_cover_each_completion_once(world_size: int, budget: int) -> None:
    parts = [experience(GROUPS[:1]), experience(GROUPS[1:])]
    shares, echoes = score(parts, world_size, budget)
    assert sorted(i for s in shares for i in s.completions.tolist()) == [0, 1, 2, 3, 4]
    completions = experience(GROUPS).completions
    assert assemble(shares, completions).tolist() == completions.values.tolist()
    assert len({len(echo.calls) for echo in echoes}) == 1


def test_an_idle_rank_computes_the_first_row_and_returns_nothing() -> None:
    shares, echoes = score([experience(GROUPS[:1])], world_size=2, budget=100)
    assert [echo.calls for echo in echoes] == [[[10, 11, 12]], [[10, 11, 12]]]
    assert shares[0].completions.tolist() == [0, 1]
    assert shares[1].completions.tolist() == []
    assert shares[1].values.tolist() == []


def test_the_longest_row_goes_first() -> None:
    shares, _ = score([experience(GROUPS)], world_size=2, budget=100)
    assert shares[0].completions.tolist() == [2]
    assert shares[1].completions.tolist() == [0, 1, 3, 4]


def test_nothing_to_score_is_no_forward_pass() -> None:
    shares, echoes = score([experience([])], world_size=2, budget=100)
    assert [echo.calls for echo in echoes] == [[], []]
    assert [s.values.tolist() for s in shares] == [[], []]


# ------------------------------------------------------------------------------------------------ rows seen before


def epochs(batches: list[list[object]], world_size: int) -> list[tuple[list[TokenShard], list[int]]]:
    """Return the ranks' shares of each batch, and the number of forward passes of each rank."""
    caches = [ScoreCache() for _ in range(world_size)]
    answers = []
    for groups in batches:
        echoes = [Echo() for _ in range(world_size)]
        part = experience(groups)  # type: ignore[arg-type]
        shares = [
            score_tokens([part], echoes[r], rank=r, world_size=world_size, budget=4, cache=caches[r])
            for r in range(world_size)
        ]
        assert assemble(shares, part.completions).tolist() == part.completions.values.tolist()
        answers.append((shares, [len(echo.calls) for echo in echoes]))
    return answers


@pytest.mark.parametrize("world_size", [1, 2, 3])
def test_a_second_epoch_computes_nothing_in_any_order(world_size: int) -> None:
    first, second = epochs([GROUPS, GROUPS[::-1]], world_size)
    assert all(first[1])
    assert second[1] == [0] * world_size


@pytest.mark.parametrize("world_size", [1, 2])
def test_only_new_rows_are_computed(world_size: int) -> None:
    new = ([3], [[10, 11], [13]])  # a cached prompt and a cached completion, but another group
    _, (_, num_forwards) = epochs([GROUPS[:2], [*GROUPS[:2], new]], world_size)
    assert num_forwards == [1] * world_size  # the rank without work computes too, and discards the result


def test_equal_rows_of_one_batch_are_cached_once() -> None:
    _, (shares, num_forwards) = epochs([[GROUPS[0], GROUPS[0]], [GROUPS[0]]], world_size=2)
    assert num_forwards == [0, 0]
    assert sorted(len(s.completions) for s in shares) == [0, 2]


def test_a_key_distinguishes_prompt_from_completion_and_one_completion_from_two() -> None:
    groups = [([3], [[4, 5]]), ([3, 4], [[5]]), ([3], [[4], [5]]), ([3], [[4, 5, 0]])]
    given = experience(groups)
    assert len(set(row_keys(given.prompt_tokens, given.completions, given.group_offsets))) == 4


# ------------------------------------------------------------------------------------------------ long groups


def test_a_group_longer_than_the_budget_is_computed_in_parts() -> None:
    long = ([3, 4], [[10, 11, 12], [13, 14], [15], [16, 17, 18, 19]])  # 2 + 2 + 1 + 0 + 3 input positions
    shares, echoes = score([experience([long, GROUPS[0]])], world_size=1, budget=5)
    assert sorted(map(sorted, echoes[0].calls)) == [[10, 11, 12], [10, 11, 12, 13, 14, 15], [16, 17, 18, 19]]
    assert sorted(shares[0].completions.tolist()) == [0, 1, 2, 3, 4, 5]
    whole = Echo()
    score_tokens([experience([long])], whole, rank=0, world_size=1, budget=5, whole_rows=True)
    assert {tuple(targets) for targets in whole.calls} == {tuple(range(10, 20))}


def test_parts_are_cached_separately() -> None:
    pair = ([3, 4], [[10, 11, 12], [13, 14, 15]])
    other = ([3, 4], [[10, 11, 12], [16, 17, 18]])
    _, (_, num_forwards) = epochs(
        [[pair], [other]], world_size=1
    )  # at a budget of 4 each completion is a row of its own
    assert num_forwards == [1]
