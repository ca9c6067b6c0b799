from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch

from workers.algorithms.base import MicroBatch
from workers.algorithms.dpo import loss, prepare
from workers.config import DpoConfig
from workers.types import ScoredBatch

MakeScored = Callable[..., ScoredBatch]
MicroBatchOf = Callable[..., MicroBatch]


def config(**settings: Any) -> DpoConfig:
    return DpoConfig.model_validate({"type": "dpo", **settings})


def log_sigmoid(x: float) -> float:
    return -math.log1p(math.exp(-x))


def test_prepare_puts_chosen_before_rejected(scored: MakeScored) -> None:
    given = scored([[1, 2], [3, 1, 1]], rewards=[0, 2, 1, 1, 4], reference=[-1, -2, -3, -4, -5, -6, -7, -8])
    batch, metrics = prepare(given, config(pairs={"min_margin": 2.5}))
    assert batch.num_rows == 1  # the first group's margin is 2
    assert batch.sources is not None
    assert batch.margins is not None
    chosen, rejected = batch.sources.tolist()
    assert chosen == 4
    assert rejected in {2, 3}
    assert batch.margins.tolist() == [3]
    assert [completion[0] for completion in batch.completions] == [chosen, rejected]
    assert batch.reference_logprobs is not None
    assert batch.reference_logprobs.tolist() == [-8, *{2: [-4, -5, -6], 3: [-7]}[rejected]]
    assert [prompt.tolist() for prompt in batch.prompts] == [[101, 101]]
    assert metrics["pairs/count"] == 1
    assert metrics["pairs/saturated_groups"] == 0.5
    assert metrics["pairs/margin"] == metrics["objective/scores_margin"] == 3
    assert metrics["pairs/chosen_length"] == 1
    assert metrics["pairs/rejected_length"] == {2: 3, 3: 1}[rejected]


def test_the_length_gap_has_a_standard_error_over_prompts(scored: MakeScored) -> None:
    given = scored([[3, 1], [1, 2], [2, 1]], rewards=[1, 0] * 3, reference=[0] * 10)
    _, metrics = prepare(given, config())
    # Gaps of 2, −1 and 1 are 4/3, −5/3 and 1/3 from their mean; √(42/9 · 3/2) / 3 = √7 / 3.
    assert metrics["pairs/length_gap"] == pytest.approx(2 / 3)
    assert metrics["pairs/length_gap_error"] == pytest.approx(7**0.5 / 3)


def test_several_pairs_of_one_prompt_are_several_rows(scored: MakeScored) -> None:
    given = scored([[1, 1, 1, 1]], rewards=[3, 0, 1, 2], reference=[0] * 4)
    batch, metrics = prepare(given, config(pairs={"per_prompt": 4}))
    assert batch.sources is not None
    assert batch.sources.tolist() == [0, 1, 3, 2]
    assert batch.row_offsets.tolist() == [0, 2, 4]
    assert metrics["pairs/margin"] == (3 + 1) / 2
    assert metrics["pairs/saturated_groups"] == 0


def test_pairs_of_a_dataset_s_ratings_keep_their_margins(scored: MakeScored) -> None:
    # Two rows of a dataset: three answers rated 5, 4 and 2, and two rated alike.
    given = scored([[1, 1, 1], [1, 1]], rewards=[5, 4, 2, 3, 3], reference=[0] * 5)
    batch, metrics = prepare(given, config(pairs={"selection": "all", "per_prompt": 3}, margin_weight=0.5))
    assert batch.sources is not None
    assert batch.margins is not None
    pairs = zip(batch.sources.reshape(-1, 2).tolist(), batch.margins.tolist(), strict=True)
    assert sorted(pairs) == [([0, 1], 1), ([0, 2], 3), ([1, 2], 2)]
    assert metrics["pairs/saturated_groups"] == 0.5
    clear, _ = prepare(given, config(pairs={"selection": "all", "per_prompt": 3, "min_margin": 1.0}))
    assert clear.num_rows == 2
    best, _ = prepare(given, config())
    assert best.sources is not None
    assert best.sources.tolist() == [0, 2]


def test_metrics_of_samples_only_when_there_are_samples(scored: MakeScored) -> None:
    _, offline = prepare(scored([[1, 2]], rewards=[1, 0], reference=[0] * 3), config())
    assert "reward" not in offline
    assert offline["num_tokens"] == 1 + 1 + 1 + 2
    _, online = prepare(scored([[1, 2]], rewards=[1, 0], reference=[0] * 3, logprobs=[-1] * 3), config())
    assert online["reward"] == 0.5
    assert online["objective/kl"] == (-1 - 2) / 2


def test_no_margin_is_a_batch_without_rows(scored: MakeScored) -> None:
    batch, metrics = prepare(scored([[1, 2], [1, 1]], rewards=[1] * 4, reference=[0] * 5), config())
    assert batch.num_rows == 0
    assert config().num_updates(batch.num_rows) == 0
    assert metrics == {"num_tokens": 11.0, "pairs/count": 0.0, "pairs/saturated_groups": 1.0}


# Pair 0: log-ratios of the chosen 0.5 + 0.5, of the rejected −1: h = 0.1·(1 + 1) = 0.2.
# Pair 1: of the chosen −3, of the rejected 0 + 1:                h = 0.1·(−3 − 1) = −0.4.
LENGTHS = [[2, 1], [1, 2]]
REFERENCE = [-1.5, -2.5, -1.0, -1.0, -2.0, -3.0]
LOGPROBS = [-1.0, -2.0, -2.0, -4.0, -2.0, -2.0]


def test_loss_by_hand(micro_batch: MicroBatchOf) -> None:
    value, stats = loss(torch.tensor(LOGPROBS), micro_batch(LENGTHS, reference_logprobs=REFERENCE), config())
    expected = -(log_sigmoid(0.2) + log_sigmoid(-0.4)) / 2
    assert value.item() == pytest.approx(expected)
    assert {name: x.item() for name, x in stats.items()} == pytest.approx(
        {
            "loss": expected,
            "nll_loss": (3 / 2 + 4) / 2,
            "rewards/chosen": 0.1 * (1 - 3) / 2,
            "rewards/rejected": 0.1 * (-1 + 1) / 2,
            "rewards/margins": (0.2 - 0.4) / 2,
            "rewards/accuracies": 1 / 2,
            "logps/chosen": (-3 - 4) / 2,
            "logps/rejected": (-2 - 4) / 2,
        }
    )


def test_gradient_by_hand(micro_batch: MicroBatchOf) -> None:
    # dL/dlogπ of a chosen token: −β σ(−h) / pairs; of a rejected token the opposite.
    logprobs = torch.tensor(LOGPROBS, requires_grad=True)
    loss(logprobs, micro_batch(LENGTHS, reference_logprobs=REFERENCE), config())[0].backward()
    first, second = 0.1 * math.exp(log_sigmoid(-0.2)) / 2, 0.1 * math.exp(log_sigmoid(0.4)) / 2
    assert logprobs.grad is not None
    assert logprobs.grad.tolist() == pytest.approx([-first, -first, first, -second, second, second])


def test_label_smoothing_and_sft_weight_by_hand(micro_batch: MicroBatchOf) -> None:
    settings = config(label_smoothing=0.1, sft_weight=2.0)
    value, _ = loss(torch.tensor(LOGPROBS), micro_batch(LENGTHS, reference_logprobs=REFERENCE), settings)
    pair_0 = -0.9 * log_sigmoid(0.2) - 0.1 * log_sigmoid(-0.2) + 2 * 3 / 2  # chosen: NLL 3 over 2 tokens
    pair_1 = -0.9 * log_sigmoid(-0.4) - 0.1 * log_sigmoid(0.4) + 2 * 4 / 1
    assert value.item() == pytest.approx((pair_0 + pair_1) / 2)


@pytest.mark.parametrize("smoothing", [0.0, 0.3])
def test_policy_equal_to_reference_costs_log_2(smoothing: float, micro_batch: MicroBatchOf) -> None:
    batch = micro_batch(LENGTHS, reference_logprobs=REFERENCE)
    value, stats = loss(torch.tensor(REFERENCE), batch, config(label_smoothing=smoothing))
    assert value.item() == pytest.approx(math.log(2))
    assert stats["rewards/margins"].item() == 0
    assert stats["rewards/accuracies"].item() == 0


def test_extreme_margins_stay_finite(micro_batch: MicroBatchOf) -> None:
    batch = micro_batch([[1, 1]], reference_logprobs=[0, 0])
    logprobs = torch.tensor([-1e5, 0.0], requires_grad=True)
    value, _ = loss(logprobs, batch, config())
    value.backward()
    assert value.item() == pytest.approx(1e4)
    assert logprobs.grad is not None
    assert logprobs.grad.tolist() == pytest.approx([-0.1, 0.1])


def test_a_row_that_is_not_a_pair_is_refused(micro_batch: MicroBatchOf) -> None:
    with pytest.raises(AssertionError, match="a chosen and a rejected"):
        loss(torch.zeros(3), micro_batch([[1, 1], [1]], reference_logprobs=[0] * 3), config())
