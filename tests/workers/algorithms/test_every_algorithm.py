"""Properties of every loss: it adds up over micro-batches, in any order and precision."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields, replace
from typing import Any, get_args

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from pydantic import TypeAdapter
from torch import Tensor

from workers.algorithms import ALGORITHMS
from workers.algorithms.base import Loss, MicroBatch, Stats, totals_of
from workers.config import METHODS, AlgorithmConfig
from workers.stats import Totals
from workers.types import Finish, ScoredBatch, TrainBatch

SETTINGS: list[dict[str, Any]] = [
    {"type": "sft"},
    {"type": "grpo", "beta": 0.1},
    {"type": "grpo", "beta": 0.1, "kl_placement": "reward", "scale_rewards": "batch", "loss_type": "grpo"},
    {"type": "grpo", "loss_type": "dr_grpo", "fixed_length": 8, "mask_truncated_completions": True},
    {"type": "grpo", "importance_sampling_level": "sequence", "loss_type": "grpo", "delta": 4.0},
    {"type": "grpo", "loss_type": "cispo", "epsilon_high": 1.5, "overlong_buffer": 3, "overlong_length": 6},
    {"type": "grpo", "vllm_importance_sampling_correction": True},
    {"type": "rloo", "vllm_importance_sampling_correction": True},
    {"type": "rloo", "normalize_advantages": True, "epsilon_high": 0.5},
    {"type": "reinforce++", "gamma": 0.9},
    {"type": "reinforce++", "baseline": "group", "vllm_importance_sampling_correction": True},
    {"type": "ppo", "kl_placement": "loss", "kl_estimator": "k2", "vllm_importance_sampling_correction": True},
    {"type": "ppo", "kl_placement": "loss", "kl_estimator": "k3"},
    {"type": "ppo", "whiten_rewards": True, "missing_eos_penalty": 1.0},
    {"type": "ppo", "critic": True},
    {"type": "dpo", "label_smoothing": 0.1, "sft_weight": 0.5, "pairs": {"per_prompt": 2}},
    {"type": "kto", "desirable_weight": 1.5},
    {"type": "dpo", "loss_type": "hinge", "ld_alpha": 0.5, "length_alpha": 0.02, "pairs": {"per_prompt": 2}},
    {
        "type": "dpo",
        "loss_type": "robust",
        "label_smoothing": 0.1,
        "dpop_lambda": 2.0,
        "pairs": {"selection": "all", "per_prompt": 9},
    },
    {"type": "dpo", "loss_type": "sigmoid_norm", "margin_weight": 0.5, "pairs": {"per_prompt": 2}},
    {"type": "dpo", "loss_type": "ipo", "ld_alpha": 0.0, "pairs": {"selection": "random", "per_prompt": 2}},
    {"type": "dpo", "loss_type": "simpo", "beta": 2.0, "pairs": {"per_prompt": 2}},
    {"type": "reward_model", "center_rewards_coefficient": 0.1, "margin_weight": 0.5},
    {"type": "rejection_sampling", "keep_best": 2, "min_reward": -0.5},
    {"type": "distill"},
    {"type": "distill", "objective": "policy_gradient", "beta": 1.0},
]


class Case:
    """Batch of about 100 tokens, the loss to test, and outputs of a model for the tokens."""

    def __init__(
        self,
        scored: Callable[..., ScoredBatch],
        make_read_only: Callable[[Any], None],
        settings: dict[str, Any],
    ) -> None:
        rng = np.random.Generator(np.random.Philox(7))
        lengths = [rng.integers(1, 7, size).tolist() for size in (4, 2, 3, 4, 5, 2)]
        n, t = sum(map(len, lengths)), sum(map(sum, lengths))
        given = scored(
            lengths,
            rewards=rng.normal(size=n),
            logprobs=-rng.exponential(size=t),
            reference=-rng.exponential(size=t),
            values=rng.normal(size=t),
            finish=rng.choice([Finish.stop, Finish.stop, Finish.length], n),
            hidden=rng.normal(size=(t, 3)),
        )
        assert given.experience.logprobs is not None
        own = (given.experience.logprobs + rng.normal(0, 0.7, t)).astype(np.float32)
        given = replace(given, learner_logprobs=own if settings.get("vllm_importance_sampling_correction") else None)
        is_critic = settings.get("critic", False)
        algorithm = ALGORITHMS[settings["type"]]
        self.config: Any = TypeAdapter(AlgorithmConfig).validate_python(
            {key: value for key, value in settings.items() if key != "critic"}
        )
        self.batch, _ = algorithm.prepare(given, self.config)
        make_read_only(self.batch)
        loss = algorithm.critic_loss if is_critic else algorithm.loss
        assert loss is not None
        self.loss: Loss = loss
        self.rows = np.arange(self.batch.num_rows)
        self.totals = totals_of(self.batch, self.rows)
        if self.batch.baseline is not None:  # the learner measures it
            self.totals = replace(self.totals, baseline=0.5)
        num_tokens = len(self.batch.completions.values)
        self.outputs = torch.from_numpy(rng.normal(-1, 0.5, num_tokens)).float()


@pytest.fixture(params=SETTINGS, ids=lambda settings: "-".join(map(str, settings.values())))
def case(
    request: pytest.FixtureRequest, scored: Callable[..., ScoredBatch], make_read_only: Callable[[Any], None]
) -> Case:
    return Case(scored, make_read_only, request.param)


def learn(case: Case, *micro_batches: NDArray[np.int64]) -> tuple[float, Tensor, dict[str, float]]:
    """Return the loss, the gradient of each token's output and the stats, summed over micro-batches of these rows."""
    outputs = case.outputs.clone().requires_grad_()
    total, sums = 0.0, dict[str, float]()
    for rows in micro_batches:
        micro_batch = MicroBatch.of(case.batch, rows, case.totals)
        value, stats = case.loss(outputs[tokens_of(case.batch, rows)], micro_batch, case.config)
        value.backward()
        total += value.item()
        check(stats)
        sums = {name: sums.get(name, 0.0) + x.item() for name, x in stats.items()}
    assert outputs.grad is not None
    return total, outputs.grad, sums


def tokens_of(batch: TrainBatch, rows: NDArray[np.int64]) -> Tensor:
    completions = [i for row in rows for i in range(batch.row_offsets[row], batch.row_offsets[row + 1])]
    return torch.from_numpy(batch.completions.positions(np.array(completions, np.int64)))


def check(stats: Stats) -> None:
    for name, value in stats.items():
        assert value.ndim == 0, name
        assert not value.requires_grad, name
        assert torch.isfinite(value), name


def assert_same(one: tuple[float, Tensor, dict[str, float]], two: tuple[float, Tensor, dict[str, float]]) -> None:
    assert one[0] == pytest.approx(two[0], rel=1e-5, abs=1e-6)
    torch.testing.assert_close(one[1], two[1], rtol=1e-5, atol=1e-7)
    assert one[2] == pytest.approx(two[2], rel=1e-5, abs=1e-6)


def test_micro_batches_add_up(case: Case) -> None:
    whole = learn(case, case.rows)
    assert whole[1].abs().sum() > 0
    assert_same(learn(case, *np.array_split(case.rows, 3)), whole)
    assert_same(learn(case, *case.rows[:, None]), whole)


def test_the_order_of_rows_does_not_matter(case: Case) -> None:
    assert_same(learn(case, np.random.Generator(np.random.Philox(1)).permutation(case.rows)), learn(case, case.rows))


def test_a_rank_may_have_nothing_to_do(case: Case) -> None:
    empty = case.rows[:0]
    outputs = case.outputs[:0].clone().requires_grad_()
    value, stats = case.loss(outputs, MicroBatch.of(case.batch, empty, case.totals), case.config)
    value.backward()
    assert value.item() == 0
    assert {x.item() for x in stats.values()} == {0}
    assert_same(learn(case, empty, case.rows, empty), learn(case, case.rows))


def test_float32_agrees_with_float64(case: Case) -> None:
    single = MicroBatch.of(case.batch, case.rows, case.totals)
    tensors = {f.name: getattr(single, f.name) for f in fields(single)}
    double = replace(
        single,
        **{n: x.double() for n, x in tensors.items() if isinstance(x, Tensor) and x.is_floating_point()},
    )
    value_32, _ = case.loss(case.outputs, single, case.config)
    value_64, _ = case.loss(case.outputs.double(), double, case.config)
    assert (value_32.dtype, value_64.dtype) == (torch.float32, torch.float64)
    assert value_32.item() == pytest.approx(value_64.item(), rel=1e-5, abs=1e-6)


def test_outputs_of_another_length_are_refused(case: Case) -> None:
    with pytest.raises(AssertionError):
        case.loss(case.outputs[:-1], MicroBatch.of(case.batch, case.rows, case.totals), case.config)


def test_the_table_has_one_record_for_each_config() -> None:
    union, _ = get_args(AlgorithmConfig)
    types = [get_args(config.model_fields["type"].annotation)[0] for config in get_args(union)]
    assert types == list(METHODS)
    assert list(ALGORITHMS) == [name for name in types if METHODS[name].needs.trains]
    for name, record in ALGORITHMS.items():
        assert (record.critic_loss is not None) == METHODS[name].needs.critic


def test_totals_of_some_rows(case: Case) -> None:
    some = totals_of(case.batch, case.rows[1:3])
    begin, end = case.batch.row_offsets[[1, 3]]
    tokens = sum(len(case.batch.completions[i]) for i in range(begin, end))
    desirable = 0 if case.batch.labels is None else int(case.batch.labels[1:3].sum())
    assert some == Totals(rows=2, completions=int(end - begin), tokens=tokens, desirable=desirable)
