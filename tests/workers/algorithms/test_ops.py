from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch

from workers.algorithms.ops import kl_k1, kl_k2, kl_k3, segment_sum

Estimator = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


def test_segment_sum_adds_what_belongs_together() -> None:
    sums = segment_sum(torch.tensor([1.0, 2.0, 4.0, 8.0]), torch.tensor([0, 2, 0, 2]), 4)
    assert sums.tolist() == [5.0, 0.0, 10.0, 0.0]


def test_segment_sum_passes_gradient_to_each_token() -> None:
    values = torch.ones(3, requires_grad=True)
    (segment_sum(values, torch.tensor([0, 1, 1]), 2) * torch.tensor([10.0, 20.0])).sum().backward()
    assert values.grad is not None
    assert values.grad.tolist() == [10.0, 20.0, 20.0]


@pytest.mark.parametrize(
    ("values", "segment_of"),
    [
        (torch.ones(2, 2), torch.zeros(2, 2, dtype=torch.int64)),  # a padded rectangle
        (torch.ones(3), torch.zeros(2, dtype=torch.int64)),  # another length
        (torch.ones(2), torch.zeros(2)),  # segments that are not integers
    ],
)
def test_segment_sum_refuses_other_shapes_and_types(values: torch.Tensor, segment_of: torch.Tensor) -> None:
    with pytest.raises(AssertionError):
        segment_sum(values, segment_of, 1)


def test_kl_estimators_by_hand() -> None:
    # π = 1/2 where q = 1/4: d = log 2, q/π = 1/2.
    logprobs, other = torch.tensor([math.log(0.5)]), torch.tensor([math.log(0.25)])
    assert kl_k1(logprobs, other).item() == pytest.approx(math.log(2))
    assert kl_k2(logprobs, other).item() == pytest.approx(math.log(2) ** 2 / 2)
    assert kl_k3(logprobs, other).item() == pytest.approx(0.5 - 1 + math.log(2))


@pytest.mark.parametrize("estimator", [kl_k1, kl_k2, kl_k3])
def test_kl_estimators_vanish_where_the_two_agree(estimator: Estimator) -> None:
    logprobs = torch.tensor([-0.1, -3.0])
    assert estimator(logprobs, logprobs).tolist() == [0.0, 0.0]


def _kl(p: torch.Tensor, q: torch.Tensor) -> torch.Tensor:
    return (p * (p.log() - q.log())).sum()


def _policy_and_other() -> tuple[torch.Tensor, torch.Tensor]:
    logits = torch.tensor([0.3, -1.0, 0.8], dtype=torch.float64, requires_grad=True)
    return logits, torch.tensor([0.6, 0.3, 0.1], dtype=torch.float64)


@pytest.mark.parametrize("estimator", [kl_k1, kl_k3])
def test_k1_and_k3_have_the_kl_as_their_mean(estimator: Estimator) -> None:
    logits, q = _policy_and_other()
    policy = logits.softmax(0)
    assert (policy * estimator(policy.log(), q.log())).sum().item() == pytest.approx(_kl(policy, q).item())


@pytest.mark.parametrize(
    ("estimator", "objective"),
    [
        (kl_k1, lambda policy, q: 0 * policy.sum()),
        (kl_k2, lambda policy, q: _kl(policy, q)),
        (kl_k3, lambda policy, q: _kl(q, policy)),
    ],
    ids=["k1: nothing", "k2: KL(policy, other)", "k3: KL(other, policy)"],
)
def test_what_each_estimator_minimises_as_a_loss(estimator: Estimator, objective: Estimator) -> None:
    """Check the expected gradient of each estimator over sampled tokens, without a gradient through the sampling."""
    logits, q = _policy_and_other()
    policy = logits.softmax(0)
    (of_loss,) = torch.autograd.grad((policy.detach() * estimator(policy.log(), q.log())).sum(), logits)
    (expected,) = torch.autograd.grad(objective(logits.softmax(0), q), logits)
    torch.testing.assert_close(of_loss, expected, rtol=1e-12, atol=1e-12)
