from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from workers.algorithms.advantages import (
    completion_sums,
    gae,
    group_advantages,
    group_mean_std,
    token_rewards,
    whiten,
)
from workers.ragged import Ragged
from workers.types import Floats


def floats(*values: float) -> Floats:
    return np.array(values, np.float32)


def completions(*lengths: int) -> Ragged:
    return Ragged.of([[7] * length for length in lengths])


def test_completion_sums() -> None:
    assert completion_sums(floats(1, 2, 4), completions(2, 0, 1)).tolist() == [3, 0, 4]


# ------------------------------------------------------------------------------------------- groups

# Group 0: rewards 3 1 2 2, mean 2, squares 1 1 0 0, std √(2/3). Group 1: 0 1, mean ½, std √(2·¼) = √½.
REWARDS, OFFSETS = floats(3, 1, 2, 2, 0, 1), np.array([0, 4, 6])


def test_group_mean_and_std() -> None:
    means, stds = group_mean_std(REWARDS, OFFSETS)
    assert means.tolist() == [2, 0.5]
    assert stds.tolist() == pytest.approx([math.sqrt(2 / 3), math.sqrt(0.5)])


def test_advantages_without_scaling_are_centred_rewards() -> None:
    assert group_advantages(REWARDS, OFFSETS, scale="none").tolist() == [1, -1, 0, 0, -0.5, 0.5]


def test_advantages_scaled_by_the_group() -> None:
    first, second = 1 / (math.sqrt(2 / 3) + 1e-4), 0.5 / (math.sqrt(0.5) + 1e-4)
    expected = [first, -first, 0, 0, -second, second]
    assert group_advantages(REWARDS, OFFSETS, scale="group").tolist() == pytest.approx(expected)


def test_advantages_scaled_by_the_batch() -> None:
    # All six: mean 9/6 = 1.5, squares 2.25 .25 .25 .25 2.25 .25, sum 5.5, std √(5.5/5).
    std = math.sqrt(1.1) + 1e-4
    expected = [1 / std, -1 / std, 0, 0, -0.5 / std, 0.5 / std]
    assert group_advantages(REWARDS, OFFSETS, scale="batch").tolist() == pytest.approx(expected)


@pytest.mark.parametrize("scale", ["group", "batch", "none"])
def test_constant_groups_have_no_advantage(scale: str) -> None:
    rewards = floats(0.1, 0.1, 0.1, 0.7, 0.7, 5.0)  # 0.1 is not a binary fraction; the last group has one member
    assert group_advantages(rewards, np.array([0, 3, 5, 6]), scale=scale).tolist() == [0] * 6


def test_leave_one_out_is_the_unscaled_advantage_stretched() -> None:
    # RLOO: 3 − (1+2+2)/3 = 4/3 = (4/3)·(3 − 2).
    assert group_advantages(REWARDS, OFFSETS, scale="none")[0] * 4 / 3 == pytest.approx(3 - (1 + 2 + 2) / 3)


# ------------------------------------------------------------------------------------------- tokens


def test_score_stands_on_the_last_token() -> None:
    assert token_rewards(floats(5, -1), completions(3, 1), None).tolist() == [0, 0, 5, -1]


def test_penalty_falls_on_every_token() -> None:
    rewards = token_rewards(floats(5, -1), completions(2, 1), floats(0.5, -0.25, 2))
    assert rewards.tolist() == [-0.5, 5.25, -3]


def test_a_completion_without_tokens_is_refused() -> None:
    with pytest.raises(AssertionError, match="without tokens"):
        token_rewards(floats(5, 1), completions(2, 0), None)


def test_gae_by_hand() -> None:
    # γ = ½, λ = ½. First completion: r = 0 0 8, V = 2 4 6.
    #   t=2: δ = 8 − 6 = 2,          A = 2
    #   t=1: δ = 0 + ½·6 − 4 = −1,   A = −1 + ¼·2 = −0.5
    #   t=0: δ = 0 + ½·4 − 2 = 0,    A = 0 + ¼·(−0.5) = −0.125
    # Second: r = 1, V = 3: A = 1 − 3 = −2, with nothing of the neighbour.
    advantages = gae(floats(0, 0, 8, 1), floats(2, 4, 6, 3), completions(3, 1), gamma=0.5, lam=0.5)
    assert advantages.tolist() == [-0.125, -0.5, 2, -2]


def test_gae_with_lambda_1_is_the_return_less_the_value() -> None:
    # Returns of r = 1 2 3: 6 5 3.
    advantages = gae(floats(1, 2, 3), floats(10, 20, 30), completions(3), gamma=1.0, lam=1.0)
    assert advantages.tolist() == [6 - 10, 5 - 20, 3 - 30]


def test_gae_with_lambda_0_is_the_temporal_difference() -> None:
    advantages = gae(floats(1, 2, 3), floats(10, 20, 30), completions(3), gamma=1.0, lam=0.0)
    assert advantages.tolist() == [1 + 20 - 10, 2 + 30 - 20, 3 - 30]


def test_gae_of_nothing() -> None:
    assert gae(floats(), floats(), completions(), gamma=1.0, lam=1.0).tolist() == []


unit = st.floats(0, 1, width=32)


@given(lengths=st.lists(st.integers(1, 5), min_size=1, max_size=6), gamma=unit, lam=unit, data=st.data())
def test_gae_is_the_recursion_of_each_completion_alone(
    lengths: list[int], gamma: float, lam: float, data: st.DataObject
) -> None:
    size = sum(lengths)
    numbers = st.lists(st.floats(-10, 10, width=32), min_size=size, max_size=size)
    batch, rewards, values = completions(*lengths), floats(*data.draw(numbers)), floats(*data.draw(numbers))
    expected: list[float] = []
    for start, end in zip(batch.offsets[:-1], batch.offsets[1:], strict=True):
        advantage, next_value, backwards = 0.0, 0.0, []
        for r, v in zip(rewards[start:end][::-1].tolist(), values[start:end][::-1].tolist(), strict=True):
            advantage = r + gamma * next_value - v + gamma * lam * advantage
            next_value = v
            backwards.append(advantage)
        expected.extend(backwards[::-1])
    assert gae(rewards, values, batch, gamma=gamma, lam=lam).tolist() == pytest.approx(expected, abs=1e-4)


def test_whiten_by_hand() -> None:
    # 1 3: mean 2, variance (1 + 1)/(2 − 1) = 2.
    root = math.sqrt(2)
    assert whiten(floats(1, 3)).tolist() == pytest.approx([-1 / root, 1 / root])
    assert whiten(floats(1, 3), shift_mean=False).tolist() == pytest.approx([2 - 1 / root, 2 + 1 / root])


def test_whitening_constants_gives_zeros() -> None:
    assert whiten(floats(4, 4, 4)).tolist() == [0, 0, 0]
    assert whiten(floats(4)).tolist() == [0]
