"""Log-probabilities and values by hand, on a decoder whose hidden states are a table."""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from workers.engines.attention import Layout
from workers.engines.heads import TokenLogprobs, TokenScores, TokenValues, decoder_of, output_layer_of

NO_LAYOUT = Layout(torch.zeros(0), torch.zeros(0))
LN2 = math.log(2)


class Table(nn.Module):
    """Language model whose hidden state at a position is the row of a table for its token."""

    def __init__(self, table: list[list[float]], head: list[list[float]], bias: list[float] | None = None) -> None:
        super().__init__()
        self.table = nn.Parameter(torch.tensor(table))
        self.head = nn.Linear(len(head[0]), len(head), bias=bias is not None)
        self.head.weight = nn.Parameter(torch.tensor(head))
        if bias is not None:
            self.head.bias = nn.Parameter(torch.tensor(bias))

    def get_decoder(self) -> nn.Module:
        return self

    def get_output_embeddings(self) -> nn.Module:
        return self.head

    def forward(self, input_ids: Tensor, **_: Any) -> SimpleNamespace:
        return SimpleNamespace(last_hidden_state=self.table[input_ids])


class Composite(nn.Module):
    """Model that contains a complete language model and has no output layer itself."""

    def __init__(self, held: nn.Module) -> None:
        super().__init__()
        self.held = held

    def get_decoder(self) -> nn.Module:
        return self.held

    def get_output_embeddings(self) -> None:
        return None


def ask(
    model: nn.Module, tokens: list[int], predictors: list[int], targets: list[int], temperature: float = 1.0
) -> tuple[Tensor, Tensor]:
    arrays = (torch.tensor(x) for x in (tokens, list(range(len(tokens))), predictors, targets))
    token_ids, positions, where, which = arrays
    found: tuple[Tensor, Tensor] = model(token_ids, positions, NO_LAYOUT, where, which, temperature)
    return found


def test_logprobs_entropy_and_gradient_by_hand() -> None:
    # Hidden (1, 0), logits (log 2, 0): probabilities ⅔ and ⅓.
    model = Table(table=[[1.0, 0.0]], head=[[LN2, 0.0], [0.0, 0.0]])
    logprobs, entropy = ask(TokenLogprobs(model, chunk=8), tokens=[0], predictors=[0, 0], targets=[0, 1])
    assert logprobs.tolist() == pytest.approx([math.log(2 / 3), math.log(1 / 3)])
    assert entropy.tolist() == pytest.approx([math.log(3) - 2 / 3 * LN2] * 2)

    # d log p_0 / d logits = (1 − ⅔, −⅓): times the head's rows for the hidden state, times that state for the head.
    logprobs[0].backward()
    assert model.table.grad is not None
    assert model.head.weight.grad is not None
    torch.testing.assert_close(model.table.grad, torch.tensor([[LN2 / 3, 0.0]]))
    torch.testing.assert_close(model.head.weight.grad, torch.tensor([[1 / 3, 0.0], [-1 / 3, 0.0]]))


def test_a_bias_shifts_the_logits() -> None:
    model = Table(table=[[1.0]], head=[[0.0], [0.0]], bias=[math.log(3), 0.0])  # probabilities ¾ and ¼
    logprobs, _ = ask(TokenLogprobs(model, chunk=8), tokens=[0], predictors=[0], targets=[1])
    assert logprobs.tolist() == pytest.approx([math.log(1 / 4)])
    logprobs.sum().backward()
    assert model.head.bias.grad is not None
    assert model.head.bias.grad.tolist() == pytest.approx([-3 / 4, 3 / 4])


def test_temperature_divides_the_logits() -> None:
    # Logits (2 log 2, 0) at temperature 2 are (log 2, 0); its gradient is halved.
    model = Table(table=[[1.0]], head=[[2 * LN2], [0.0]])
    logprobs, _ = ask(TokenLogprobs(model, chunk=8), tokens=[0], predictors=[0], targets=[0], temperature=2.0)
    assert logprobs.tolist() == pytest.approx([math.log(2 / 3)])
    logprobs.sum().backward()
    assert model.head.weight.grad is not None
    assert model.head.weight.grad[:, 0].tolist() == pytest.approx([1 / 6, -1 / 6])


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_agrees_with_autograd_whatever_the_chunk(temperature: float) -> None:
    generator = torch.Generator().manual_seed(0)
    table, head, bias = (torch.randn(*shape, generator=generator) for shape in ((5, 4), (7, 4), (7,)))
    predictors, targets = [0, 1, 1, 4, 3, 2, 0], [6, 0, 3, 2, 2, 5, 1]
    weights = torch.randn(7, generator=generator)

    plain = [x.clone().requires_grad_() for x in (table, head, bias)]
    logits = (plain[0][predictors] @ plain[1].T + plain[2]) / temperature
    expected = logits.log_softmax(-1)
    (expected[range(7), targets] * weights).sum().backward()

    for chunk in (1, 3, 7, 100):
        model = Table(table.tolist(), head.tolist(), bias.tolist())
        logprobs, entropy = ask(
            TokenLogprobs(model, chunk), list(range(5)), predictors, targets, temperature=temperature
        )
        torch.testing.assert_close(logprobs, expected[range(7), targets])
        torch.testing.assert_close(entropy, -(expected.exp() * expected).sum(-1))
        (logprobs * weights).sum().backward()
        for ours, theirs in zip((model.table, model.head.weight, model.head.bias), plain, strict=True):
            torch.testing.assert_close(ours.grad, theirs.grad)


def test_entropy_has_no_gradient() -> None:
    _, entropy = ask(TokenLogprobs(Table([[1.0]], [[1.0], [2.0]]), chunk=8), [0], [0], [0])
    assert not entropy.requires_grad


def test_values_start_at_zero_and_are_linear_in_the_hidden_state() -> None:
    critic = TokenValues(Table(table=[[1.0, 2.0], [3.0, 4.0]], head=[[0.0, 0.0]]), hidden_size=2, dtype=torch.float32)
    values, entropy = ask(critic, tokens=[1, 0], predictors=[1, 0, 0], targets=[0, 0, 0])
    assert values.tolist() == [0, 0, 0]
    assert entropy is None
    with torch.no_grad():
        critic.value_head.weight.copy_(torch.tensor([[10.0, 1.0]]))
        critic.value_head.bias.fill_(0.5)
    values, _ = ask(critic, tokens=[1, 0], predictors=[1, 0, 0], targets=[0, 0, 0])
    assert values.tolist() == [10 + 2 + 0.5, 30 + 4 + 0.5, 30 + 4 + 0.5]


def test_scores_are_finer_than_bfloat16() -> None:
    # 4 + 1/128 lies between 4 and 4 + 1/32, its neighbours in bfloat16; the hidden state and the weight are both exact.
    model = Table(table=[[4.0, 1.0], [4.0, 0.0]], head=[[1.0, 0.0]])
    score = nn.Linear(2, 1, bias=False)
    score.weight = nn.Parameter(torch.tensor([[1.0, 1 / 128]]))
    scorer = TokenScores(model, score).to(torch.bfloat16)
    scores, nothing = ask(scorer, tokens=[0, 1], predictors=[0, 1], targets=[0, 0])
    assert scores.tolist() == [4 + 1 / 128, 4]
    assert nothing is None
    scores[0].backward()
    assert score.weight.grad is not None
    assert score.weight.grad.tolist() == [[4, 1]]


def test_the_output_layer_of_a_language_model_inside_a_composite() -> None:
    table = Table(table=[[1.0, 0.0]], head=[[LN2, 0.0], [0.0, 0.0]])
    composite = Composite(table)
    assert output_layer_of(composite) is table.head
    assert decoder_of(composite) is table
    logprobs, _ = ask(TokenLogprobs(composite, chunk=8), tokens=[0], predictors=[0], targets=[0])
    assert logprobs.tolist() == pytest.approx([math.log(2 / 3)])
