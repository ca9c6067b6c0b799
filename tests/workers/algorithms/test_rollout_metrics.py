from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest

from workers.algorithms.metrics import error_of, rollout_metrics, share_metrics
from workers.ragged import Ragged
from workers.repetition import repeated_tails
from workers.types import Finish, ScoredBatch

MakeScored = Callable[..., ScoredBatch]


def test_all_figures_by_hand(scored: MakeScored) -> None:
    given = scored(
        [[1, 3], [2, 4]],
        rewards=[0, 2, 5, 5],
        logprobs=[-1, -1, -1, -1, -2, -2, -1, -1, -1, -1],
        reference=[-2, -1, -1, -2, -2, -2, -1, -1, -1, -3],
        finish=[Finish.stop, Finish.length, Finish.stop, Finish.aborted],
    )
    assert rollout_metrics(given) == pytest.approx(
        {
            "reward": 3.0,
            "reward_std": (math.sqrt(2) + 0) / 2,
            "frac_reward_zero_std": 0.5,
            "objective/scores": 3.0,
            "objective/kl": (1 + 1 + 0 + 2) / 4,
            "objective/entropy": (1 + 3 + 4 + 4) / 4,
            "num_tokens": 2 * 1 + 2 * 2 + 10,
            "completions/mean_length": 2.5,
            "completions/min_length": 1,
            "completions/max_length": 4,
            "completions/mean_terminated_length": 1.5,
            "completions/min_terminated_length": 1,
            "completions/max_terminated_length": 2,
            "completions/clipped_ratio": 0.5,
            "completions/repeated_tail": (0 + 1 + 0 + 1) / 4,  # all tokens are equal, and three are needed
            "drift/saturated": 0.0,
            # From the mean, the values of the two prompts differ by the sums −4 and 4, for example: √(2 (16 + 16)) / 4.
            "reward_error": 2.0,
            "objective/kl_error": 0.0,  # 1, 1 and 0, 2: both prompts have the mean
            "objective/entropy_error": 1.0,
            "completions/mean_length_error": 0.5,
            "completions/repeated_tail_error": 0.0,
            "frac_reward_zero_std_error": math.sqrt(0.5 * 0.5 / (2 + 4)),
        }
    )


def test_figures_that_do_not_exist_are_left_out(scored: MakeScored) -> None:
    metrics = rollout_metrics(scored([[1], [1]], rewards=[0, 2], logprobs=[-1, -1], finish=[Finish.length] * 2))
    absent = {"reward_std", "frac_reward_zero_std", "objective/kl", "completions/mean_terminated_length"}
    assert not absent & metrics.keys()


def test_the_standard_error_is_over_prompts() -> None:
    # Completions that are all alike within a prompt count once: 0 and 1 with a deviation of √½ over two prompts.
    values, group_of = np.repeat([0.0, 1.0], 50), np.repeat([0, 1], 50)
    assert error_of("x", values, group_of) == {"x_error": pytest.approx(math.sqrt(0.5 / 2))}
    # Of independent values it is the deviation over √n; so it is with one prompt.
    assert error_of("x", np.asarray([0.0, 1.0]), np.zeros(2, int)) == {"x_error": pytest.approx(0.5)}
    assert error_of("x", np.asarray([1.0]), np.zeros(1, int)) == {}


def test_the_standard_error_covers_the_mean() -> None:
    # Groups of 1 to 8 values with an effect of their own: three standard errors cover zero in all but 0.3 % of draws.
    generator, missed = np.random.default_rng(0), 0
    for _ in range(500):
        group_of = np.repeat(np.arange(60), generator.integers(1, 9, 60))
        values = generator.normal(size=60)[group_of] + generator.normal(size=len(group_of))
        missed += abs(values.mean()) > 3 * error_of("x", values, group_of)["x_error"]
    assert missed <= 6


def test_a_share_of_one_is_not_certain() -> None:
    found = share_metrics("x", np.ones(12, bool))
    assert found == {"x": 1.0, "x_error": pytest.approx(math.sqrt(14 / 16 * 2 / 16 / 16))}


def test_scorers_have_standard_errors_without_the_completions_they_do_not_score(scored: MakeScored) -> None:
    given = scored([[1, 1], [1, 1]], rewards=[0, 2, 5, 5], logprobs=[-1] * 4)
    both = {"gold": np.asarray([0, 2, 5, np.nan], np.float32)}
    # The mean is 7/3; the deviations sum to −8/3 and 8/3: √(2 · 2 · 64/9) / 3.
    found = rollout_metrics(replace(given, by_scorer=both))["rewards/gold/mean_error"]
    assert found == pytest.approx(math.sqrt(4 * 64 / 9) / 3)


def test_groups_of_one_do_not_count_as_constant(scored: MakeScored) -> None:
    metrics = rollout_metrics(scored([[1], [1, 1]], rewards=[0, 1, 3], logprobs=[-1, -1, -1]))
    assert metrics["frac_reward_zero_std"] == 0
    assert metrics["reward_std"] == pytest.approx(math.sqrt(2))


def test_a_completion_beyond_ten_nats_is_saturated(scored: MakeScored) -> None:
    # Log-ratios 10.5 and −9.5, a mean of ½.
    metrics = rollout_metrics(scored([[1], [1]], rewards=[0, 2], logprobs=[-0.5, -10.5], reference=[-11, -1]))
    assert (metrics["objective/kl"], metrics["drift/saturated"]) == (0.5, 0.5)


@pytest.mark.parametrize(
    ("tokens", "terminated", "share"),
    [
        ([1, 2, 3, 2, 3, 2, 3], False, 6 / 7),  # three times 2 3
        ([1, 2, 3, 2, 3, 2], False, 0.0),  # two and a half times
        ([3, 2, 3, 2, 3, 2, 3], False, 1.0),  # three and a half times: as far back as it goes
        ([5, 5, 5], False, 1.0),
        ([5, 5], False, 0.0),
        ([1, 5, 5, 5, 9], True, 3 / 4),  # the end of sequence does not belong to the tail
        ([1, 5, 5, 5, 9], False, 0.0),
        ([5, 5, 5, 1], False, 0.0),  # not a tail
        ([9], True, 0.0),
        ([1, 2, 3, 4, 5, 6, 7, 8] * 3, False, 1.0),
        ([1, 2, 3, 4, 5, 6, 7, 8, 9] * 3, False, 0.0),  # a block of nine is no repetition here
    ],
)
def test_repeated_tails_by_hand(tokens: list[int], terminated: bool, share: float) -> None:
    # Its neighbours repeat its ends: no tail reaches into another completion.
    around = Ragged.of(
        [np.full(4, tokens[0], np.int32), np.asarray(tokens, np.int32), np.full(4, tokens[-1], np.int32)]
    )
    found = repeated_tails(around, np.asarray([False, terminated, False]))
    assert found.tolist() == pytest.approx([1.0, share, 1.0])


def test_no_completion_has_no_tail() -> None:
    assert repeated_tails(Ragged.of([]), np.zeros(0, bool)).tolist() == []
