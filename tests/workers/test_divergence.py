"""Divergences from another model: by hand on three tokens, and against plain torch for several chunk sizes."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from workers.engines.divergence import OutputLayer, Target, divergences

LN2, LN3, LN5 = math.log(2), math.log(3), math.log(5)
BETAS = (0.0, 0.3, 0.5, 1.0)

# p = (1/2, 1/4, 1/4) and q = (1/8, 1/8, 3/4); at β = 1/2 their mixture is (5/16, 3/16, 1/2).
STUDENT, TEACHER = (1 / 2, 1 / 4, 1 / 4), (1 / 8, 1 / 8, 3 / 4)
FORWARD = 1 / 8 * -2 * LN2 + 1 / 8 * -LN2 + 3 / 4 * LN3  # KL(q‖p): log of 1/4, 1/2, 3
REVERSE = 1 / 2 * 2 * LN2 + 1 / 4 * LN2 - 1 / 4 * LN3  # KL(p‖q): log of 4, 2, 1/3
Q_TO_M = 1 / 8 * (LN2 - LN5) + 1 / 8 * (LN2 - LN3) + 3 / 4 * (LN3 - LN2)  # log of 2/5, 2/3, 3/2
P_TO_M = 1 / 2 * (3 * LN2 - LN5) + 1 / 4 * (2 * LN2 - LN3) + 1 / 4 * -LN2  # log of 8/5, 4/3, 1/2


def of_logits(
    student: Tensor, teacher: Tensor, beta: float, *, temperature: float = 1.0, chunk: int = 8
) -> tuple[Tensor, Tensor]:
    """Compute divergences with the logits as hidden states and the identity as output layers."""
    layer = OutputLayer(weight=torch.eye(teacher.shape[1], dtype=teacher.dtype))
    target = Target(hidden=teacher, layer=layer, beta=beta)
    identity = torch.eye(student.shape[1], dtype=student.dtype)
    return divergences(student, identity, None, target, temperature, chunk)


def logits_of(*probabilities: tuple[float, ...]) -> Tensor:
    return torch.tensor(probabilities, dtype=torch.float64).log()


@pytest.mark.parametrize(("beta", "value"), [(0.0, FORWARD), (0.5, (Q_TO_M + P_TO_M) / 2), (1.0, REVERSE)])
def test_values_by_hand(beta: float, value: float) -> None:
    found, entropy = of_logits(logits_of(STUDENT), logits_of(TEACHER), beta)
    assert found.tolist() == pytest.approx([value])
    assert entropy.tolist() == pytest.approx([1 / 2 * LN2 + 2 * 1 / 4 * 2 * LN2])


def test_gradients_by_hand() -> None:
    # β = 0: p − q. β = 1: p (log p/q − D).
    expected = {
        0.0: [3 / 8, 1 / 8, -1 / 2],
        1.0: [1 / 2 * (2 * LN2 - REVERSE), 1 / 4 * (LN2 - REVERSE), 1 / 4 * (-LN3 - REVERSE)],
    }
    for beta, gradient in expected.items():
        student = logits_of(STUDENT).requires_grad_()
        of_logits(student, logits_of(TEACHER), beta)[0].sum().backward()
        assert student.grad is not None
        assert student.grad[0].tolist() == pytest.approx(gradient)


@pytest.mark.parametrize("beta", BETAS)
def test_a_student_that_is_its_teacher_has_nothing_to_learn(beta: float) -> None:
    same = torch.randn(5, 7, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    student = same.clone().requires_grad_()
    value, _ = of_logits(student, same + 3.0, beta, temperature=0.7)  # a constant is no change
    value.sum().backward()
    assert student.grad is not None
    torch.testing.assert_close(value, torch.zeros_like(value), atol=1e-14, rtol=0)
    torch.testing.assert_close(student.grad, torch.zeros_like(same), atol=1e-14, rtol=0)


def test_beta_of_0_and_1_are_limits_of_the_values_between() -> None:
    student, teacher = logits_of(STUDENT), logits_of(TEACHER)
    for beta, end in ((1e-6, FORWARD), (1 - 1e-6, REVERSE)):
        assert of_logits(student, teacher, beta)[0].item() / (beta * (1 - beta)) == pytest.approx(end, rel=1e-4)


def plain(student: Tensor, teacher: Tensor, beta: float, temperature: float) -> Tensor:
    """Compute the definition in plain torch, with probabilities instead of logarithms."""
    p, q = (student / temperature).softmax(-1), (teacher / temperature).softmax(-1)
    if beta == 0:
        return (q * (q / p).log()).sum(-1)
    if beta == 1:
        return (p * (p / q).log()).sum(-1)
    m = (1 - beta) * p + beta * q
    return beta * (q * (q / m).log()).sum(-1) + (1 - beta) * (p * (p / m).log()).sum(-1)


@pytest.mark.parametrize("rows", [(7, 7), (9, 7), (7, 9)], ids=["equal", "student-padded", "teacher-padded"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("beta", BETAS)
def test_agrees_with_autograd_whatever_the_chunk(beta: float, dtype: torch.dtype, rows: tuple[int, int]) -> None:
    generator = torch.Generator().manual_seed(1)

    def randn(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype)

    given = [randn(11, 4), randn(rows[0], 4), randn(rows[0])]  # hidden, weight, bias of the student
    teacher_hidden, layer = randn(11, 6), OutputLayer(weight=randn(rows[1], 6), bias=randn(rows[1]))
    weights, temperature = randn(11), 0.7

    hidden, weight, bias = (x.clone().requires_grad_() for x in given)
    assert layer.bias is not None
    theirs = (teacher_hidden @ layer.weight.T + layer.bias)[:, :7]
    expected = plain((hidden @ weight.T + bias)[:, :7], theirs, beta, temperature)
    (expected * weights).sum().backward()
    tolerance = {"atol": 1e-12, "rtol": 1e-10} if dtype == torch.float64 else {"atol": 1e-5, "rtol": 1e-4}

    for chunk in (1, 4, 11, 100):
        ours = [x.clone().requires_grad_() for x in given]
        target = Target(hidden=teacher_hidden, layer=layer, beta=beta)
        value, entropy = divergences(*ours, target, temperature, chunk)
        assert value.dtype == dtype
        assert not entropy.requires_grad
        torch.testing.assert_close(value, expected, **tolerance)
        (value * weights).sum().backward()
        for one, other in zip(ours, (hidden, weight, bias), strict=True):
            torch.testing.assert_close(one.grad, other.grad, **tolerance)


@pytest.mark.parametrize("beta", BETAS)
def test_gradients_are_finite_differences(beta: float) -> None:
    generator = torch.Generator().manual_seed(2)
    hidden, weight, teacher = (
        torch.randn(*shape, generator=generator, dtype=torch.float64) for shape in ((3, 4), (5, 4), (3, 5))
    )
    target = Target(hidden=teacher, layer=OutputLayer(weight=torch.eye(5, dtype=torch.float64)), beta=beta)
    assert torch.autograd.gradcheck(
        lambda h, w: divergences(h, w, None, target, 1.3, 2)[0], (hidden.requires_grad_(), weight.requires_grad_())
    )


def test_bfloat16_is_close_to_float64() -> None:
    generator = torch.Generator().manual_seed(3)
    hidden, weight, teacher = (torch.randn(*s, generator=generator).bfloat16() for s in ((6, 8), (9, 8), (6, 9)))

    def of(dtype: torch.dtype) -> Tensor:
        target = Target(hidden=teacher.to(dtype), layer=OutputLayer(weight=torch.eye(9, dtype=dtype)), beta=0.5)
        return divergences(hidden.to(dtype), weight.to(dtype), None, target, 1.0, 4)[0]

    assert of(torch.bfloat16).dtype == torch.float32
    torch.testing.assert_close(of(torch.bfloat16).double(), of(torch.float64), atol=0.02, rtol=0.02)
