from __future__ import annotations

import numpy as np
import pytest
from fakes import experience

from workers.packing import Packed
from workers.scoring import score_tokens
from workers.types import Floats, TokenShare, assemble

GROUPS = [([3], [[10, 11], [12]]), ([3, 4], [[13, 14, 15]]), ([5], [[16], [17]])]  # input lengths 2, 4 and 1


class Echo:
    """Scores every token with itself, and counts how often it was asked."""

    def __init__(self) -> None:
        self.asked: list[list[int]] = []

    def __call__(self, packed: Packed) -> Floats:
        self.asked.append(packed.targets.tolist())
        return packed.targets.astype(np.float32)


def score(parts: list[object], world_size: int, budget: int) -> tuple[list[TokenShare], list[Echo]]:
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
    assert len({len(echo.asked) for echo in echoes}) == 1


def test_an_idle_rank_asks_for_the_first_row_and_says_nothing() -> None:
    shares, echoes = score([experience(GROUPS[:1])], world_size=2, budget=100)
    assert [echo.asked for echo in echoes] == [[[10, 11, 12]], [[10, 11, 12]]]
    assert shares[0].completions.tolist() == [0, 1]
    assert shares[1].completions.tolist() == []
    assert shares[1].values.tolist() == []


def test_the_longest_row_goes_first() -> None:
    shares, _ = score([experience(GROUPS)], world_size=2, budget=100)
    assert shares[0].completions.tolist() == [2]
    assert shares[1].completions.tolist() == [0, 1, 3, 4]


def test_nothing_to_score_is_no_forward_pass() -> None:
    shares, echoes = score([experience([])], world_size=2, budget=100)
    assert [echo.asked for echo in echoes] == [[], []]
    assert [s.values.tolist() for s in shares] == [[], []]
