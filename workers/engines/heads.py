"""What is read off the hidden states: token log-probabilities, without ever holding logits of all tokens, or values."""

from __future__ import annotations

from types import MethodType
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from workers.engines.attention import Layout
from workers.engines.divergence import Target, divergences


class _ChunkedLogprobs(torch.autograd.Function):
    """log softmax(h Wᵀ + b)[target] and its entropy, `chunk` rows of logits at a time.

    The logits are formed anew in the backward pass instead of kept: 4 products instead of 3, and [chunk, V] instead of
    [T, V] memory (the idea of cut cross-entropy, arXiv 2411.09009).
    """

    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weight: Tensor, bias: Tensor | None, targets: Tensor, temperature: float, chunk: int
    ) -> tuple[Tensor, Tensor]:
        logprobs = hidden.new_empty(len(hidden), dtype=torch.float32)
        entropy = torch.empty_like(logprobs)
        normaliser = torch.empty_like(logprobs)
        for part in _chunks(len(hidden), chunk):
            logits = _logits(hidden[part], weight, bias, temperature)  # [c, V] float32
            normaliser[part] = logits.logsumexp(-1)
            logprobs[part] = logits.gather(1, targets[part, None])[:, 0] - normaliser[part]
            logits -= normaliser[part, None]
            entropy[part] = -(logits.exp() * logits).sum(-1)
        ctx.save_for_backward(hidden, weight, bias, targets, normaliser)
        ctx.temperature, ctx.chunk = temperature, chunk
        ctx.mark_non_differentiable(entropy)
        return logprobs, entropy

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        hidden, weight, bias, targets, normaliser = ctx.saved_tensors
        grad_logprobs = grads[0]
        grad_hidden = torch.empty_like(hidden)
        # Under adapters the output layer is frozen: nothing as large as the vocabulary is made for it.
        grad_weight = torch.zeros_like(weight) if ctx.needs_input_grad[1] else None
        grad_bias = torch.zeros_like(bias) if bias is not None and ctx.needs_input_grad[2] else None
        for part in _chunks(len(hidden), ctx.chunk):
            logits = _logits(hidden[part], weight, bias, ctx.temperature)
            grad_logits = logits.sub_(normaliser[part, None]).exp_().neg_()  # d logprob / d logits = onehot - softmax
            grad_logits[torch.arange(len(grad_logits)), targets[part]] += 1
            grad_logits = (grad_logits * (grad_logprobs[part, None] / ctx.temperature)).to(weight.dtype)
            grad_hidden[part] = grad_logits @ weight
            if grad_weight is not None:
                grad_weight.addmm_(grad_logits.T, hidden[part])
            if grad_bias is not None:
                grad_bias += grad_logits.sum(0)
        return grad_hidden, grad_weight, grad_bias, None, None, None


def _chunks(length: int, chunk: int) -> list[slice]:
    return [slice(i, min(i + chunk, length)) for i in range(0, length, chunk)]


def _logits(hidden: Tensor, weight: Tensor, bias: Tensor | None, temperature: float) -> Tensor:
    logits = (hidden @ weight.T).float()
    if bias is not None:
        logits += bias
    return logits.div_(temperature) if temperature != 1.0 else logits


class TokenLogprobs(nn.Module):
    """A causal language model that answers log-probabilities of given tokens: float32 [T], with their entropy [T].

    Given a `target` it answers, instead, how far its distributions are from that model's; without `targets`, the
    hidden states [T, h] that its distributions are read off.

    The model's output layer itself is taught to do so (rather than its weight taken from outside), because ZeRO-3
    gathers a partitioned weight exactly when the module that owns it is called.
    """

    def __init__(self, model: nn.Module, chunk: int) -> None:
        super().__init__()
        self.model = model
        head = cast(Any, model).get_output_embeddings()

        def forward(
            self: nn.Linear, hidden: Tensor, targets: Tensor, temperature: float, target: Target | None
        ) -> tuple[Tensor, Tensor]:
            if target is not None:
                return divergences(hidden, self.weight, self.bias, target, temperature, chunk)
            return cast(
                "tuple[Tensor, Tensor]",
                _ChunkedLogprobs.apply(  # type: ignore[no-untyped-call]
                    hidden, self.weight, self.bias, targets, temperature, chunk
                ),
            )

        head.forward = MethodType(forward, head)

    def forward(
        self,
        tokens: Tensor,
        positions: Tensor,
        layout: Layout,
        predictors: Tensor,
        targets: Tensor | None,
        temperature: float,
        target: Target | None = None,
    ) -> tuple[Tensor, Tensor | None]:
        model = cast(Any, self.model)
        hidden = _hidden(model.get_decoder(), tokens, positions, layout)[predictors]
        if targets is None:
            return hidden, None
        return cast("tuple[Tensor, Tensor]", model.get_output_embeddings()(hidden, targets, temperature, target))


class TokenValues(nn.Module):
    """A decoder with a scalar head: the value of the state in which each token is about to be chosen, float32 [T].

    The head starts at zero, so that the first advantages are the rewards, unless it is given.
    """

    def __init__(self, decoder: nn.Module, hidden_size: int, dtype: torch.dtype, head: nn.Linear | None = None) -> None:
        super().__init__()
        self.model = decoder
        if head is not None:
            self.value_head = head
            return
        self.value_head = nn.Linear(hidden_size, 1, dtype=dtype)
        nn.init.zeros_(self.value_head.weight)
        nn.init.zeros_(self.value_head.bias)

    def forward(
        self, tokens: Tensor, positions: Tensor, layout: Layout, predictors: Tensor, targets: Tensor, temperature: float
    ) -> tuple[Tensor, None]:
        hidden = _hidden(self.model, tokens, positions, layout)
        return self.value_head(hidden[predictors])[:, 0].float(), None


class TokenScores(nn.Module):
    """A decoder with the bias-free `score` layer of AutoModelForSequenceClassification: a number for what has been read
    up to each token, float32 [T]. The parameters have the names that transformers gives them.

    The product is formed in float32: in bfloat16 scores near 4 would be 1/32 apart, and a group's would often be equal.
    """

    def __init__(self, decoder: nn.Module, score: nn.Linear) -> None:
        super().__init__()
        self.model = decoder
        self.score = score

        def forward(self: nn.Linear, hidden: Tensor) -> Tensor:
            return linear(hidden.float(), self.weight.float())

        score.forward = MethodType(forward, score)  # type: ignore[method-assign]

    def forward(
        self, tokens: Tensor, positions: Tensor, layout: Layout, predictors: Tensor, targets: Tensor, temperature: float
    ) -> tuple[Tensor, None]:
        hidden = _hidden(self.model, tokens, positions, layout)
        return self.score(hidden[predictors])[:, 0], None


def _hidden(decoder: nn.Module, tokens: Tensor, positions: Tensor, layout: Layout) -> Tensor:
    """Hidden states of the packed positions: [S, h]."""
    output = decoder(input_ids=tokens[None], position_ids=positions[None], layout=layout, use_cache=False)
    return cast(Tensor, output.last_hidden_state[0])
