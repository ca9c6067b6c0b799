"""Heads on a model's hidden states: token log-probabilities (without storing all logits), values and scores."""

from __future__ import annotations

from types import MethodType
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from workers.engines.attention import READING
from workers.engines.divergence import Target, divergences
from workers.engines.layout import PACKED, Layout, Packing
from workers.engines.logits import PLAIN, LogitTransform


class _ChunkedLogprobs(torch.autograd.Function):
    """Compute log softmax(f(h Wᵀ + b))[target] and its entropy, `chunk` rows of logits at a time; f is `transform`.

    The logits are recomputed in the backward pass: 4 matrix products instead of 3, but [chunk, V] instead of [T, V]
    memory (the idea of cut cross-entropy, arXiv 2411.09009).
    """

    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        targets: Tensor,
        temperature: float,
        chunk: int,
        transform: LogitTransform,
    ) -> tuple[Tensor, Tensor]:
        logprobs = hidden.new_empty(len(hidden), dtype=torch.float32)
        entropy = torch.empty_like(logprobs)
        normaliser = torch.empty_like(logprobs)
        for part in _chunks(len(hidden), chunk):
            logits = _tempered(transform(_logits(hidden[part], weight, bias)), temperature)  # [c, V] float32
            normaliser[part] = logits.logsumexp(-1)
            logprobs[part] = logits.gather(1, targets[part, None])[:, 0] - normaliser[part]
            logits -= normaliser[part, None]
            entropy[part] = -(logits.exp() * logits).sum(-1)
        ctx.save_for_backward(hidden, weight, bias, targets, normaliser)
        ctx.temperature, ctx.chunk, ctx.transform = temperature, chunk, transform
        ctx.mark_non_differentiable(entropy)
        return logprobs, entropy

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        hidden, weight, bias, targets, normaliser = ctx.saved_tensors
        grad_logprobs = grads[0]
        grad_hidden = torch.empty_like(hidden)
        # With adapters the output layer is frozen, and no gradient as large as the vocabulary is allocated.
        grad_weight = torch.zeros_like(weight) if ctx.needs_input_grad[1] else None
        grad_bias = torch.zeros_like(bias) if bias is not None and ctx.needs_input_grad[2] else None
        for part in _chunks(len(hidden), ctx.chunk):
            transformed = ctx.transform(_logits(hidden[part], weight, bias))
            slope = ctx.transform.slope(transformed)
            logits = _tempered(transformed, ctx.temperature)
            grad_logits = logits.sub_(normaliser[part, None]).exp_().neg_()  # d logprob / d logits = onehot - softmax
            grad_logits[torch.arange(len(grad_logits)), targets[part]] += 1
            grad_logits = grad_logits * (grad_logprobs[part, None] / ctx.temperature)
            if ctx.transform != PLAIN:
                grad_logits = grad_logits * slope
            grad_logits = grad_logits.to(weight.dtype)
            grad_hidden[part] = grad_logits @ weight
            if grad_weight is not None:
                grad_weight.addmm_(grad_logits.T, hidden[part])
            if grad_bias is not None:
                grad_bias += grad_logits.sum(0)
        return grad_hidden, grad_weight, grad_bias, None, None, None, None


def decoder_of(model: Any) -> Any:
    """Return the decoder of a language model: from tokens to the hidden states that its output layer reads."""
    model = _language_model(model)
    decoder = model.get_decoder()
    return getattr(model, "model", model) if decoder is model else decoder


def output_layer_of(model: Any) -> Any:
    """Return the output layer of a language model: from hidden states to logits. None: it has none."""
    return _language_model(model).get_output_embeddings()


def _language_model(model: Any) -> Any:
    """Return the innermost model with an output layer: some composites contain a complete language model."""
    inner = model.get_decoder()
    if inner is model or getattr(inner, "get_output_embeddings", lambda: None)() is None:
        return model
    return _language_model(inner)


def _chunks(length: int, chunk: int) -> list[slice]:
    return [slice(i, min(i + chunk, length)) for i in range(0, length, chunk)]


def _logits(hidden: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    logits = (hidden @ weight.T).float()
    if bias is not None:
        logits += bias
    return logits


def _tempered(logits: Tensor, temperature: float) -> Tensor:
    return logits.div_(temperature) if temperature != 1.0 else logits


class TokenLogprobs(nn.Module):
    """A causal language model that returns log-probabilities of given tokens, float32 [T], and entropies [T].

    Given a `target`, it returns divergences from that model's distributions instead; without `targets`, the last
    hidden states [T, h].

    The forward method of the model's output layer is replaced, and its weight not used from outside, because ZeRO-3
    gathers a partitioned weight only when the module that owns it is called.
    """

    def __init__(
        self, model: nn.Module, chunk: int, transform: LogitTransform = PLAIN, packing: Packing = PACKED
    ) -> None:
        """Wrap `model`. `chunk`: rows of logits that are computed at a time."""
        super().__init__()
        self.model = model
        self.packing = packing
        self._transform = transform
        head = output_layer_of(model)

        def forward(
            self: nn.Linear,
            hidden: Tensor,
            targets: Tensor | None = None,
            temperature: float = 1.0,
            target: Target | None = None,
        ) -> Tensor | tuple[Tensor, Tensor]:
            if targets is None:  # the model's own forward pass
                return linear(hidden, self.weight, self.bias)
            if target is not None:
                return divergences(hidden, self.weight, self.bias, target, temperature, chunk, transform)
            return cast(
                "tuple[Tensor, Tensor]",
                _ChunkedLogprobs.apply(  # type: ignore[no-untyped-call]
                    hidden, self.weight, self.bias, targets, temperature, chunk, transform
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
        states = _read(decoder_of(model), tokens, positions, layout, predictors, self.packing)
        # Some decoders return float32 regardless of the dtype of their weights.
        hidden = self._transform.hidden(states).to(output_layer_of(model).weight.dtype)
        if targets is None:
            return hidden, None
        return cast("tuple[Tensor, Tensor]", output_layer_of(model)(hidden, targets, temperature, target))

    def alone(self, tokens: Tensor, last: int) -> Tensor:
        """Return the log-probabilities of the last tokens of one text [L], by the model's own forward pass: [last]."""
        logits = cast(Any, self.model)(input_ids=tokens[None], use_cache=False).logits[0, -last - 1 : -1]
        logprobs: Tensor = logits.float().log_softmax(-1).gather(1, tokens[-last:, None])[:, 0]
        return logprobs


class TokenValues(nn.Module):
    """A decoder with a scalar head: the value of the state before each token, float32 [T].

    A new head starts at zero, so that the first advantages are the rewards.
    """

    def __init__(
        self,
        decoder: nn.Module,
        hidden_size: int,
        dtype: torch.dtype,
        head: nn.Linear | None = None,
        packing: Packing = PACKED,
    ) -> None:
        super().__init__()
        self.model = decoder
        self.packing = packing
        if head is not None:
            self.value_head = head
            return
        self.value_head = nn.Linear(hidden_size, 1, dtype=dtype)
        nn.init.zeros_(self.value_head.weight)
        nn.init.zeros_(self.value_head.bias)

    def forward(
        self, tokens: Tensor, positions: Tensor, layout: Layout, predictors: Tensor, targets: Tensor, temperature: float
    ) -> tuple[Tensor, None]:
        hidden = _read(self.model, tokens, positions, layout, predictors, self.packing)
        return self.value_head(hidden.to(self.value_head.weight.dtype))[:, 0].float(), None

    def alone(self, tokens: Tensor, last: int) -> Tensor:
        """Return the values before the last tokens of one text [L], by the decoder's own forward pass: [last]."""
        hidden = _alone(self.model, tokens)[-last - 1 : -1].to(self.value_head.weight.dtype)
        values: Tensor = self.value_head(hidden)[:, 0].float()
        return values


class TokenScores(nn.Module):
    """A decoder with the bias-free `score` layer of AutoModelForSequenceClassification: a score at each token.

    Scores are float32 [T], of a model with K > 1 labels [T, K]. Parameters have the names that transformers gives them.
    The product is computed in float32: in bfloat16, scores near 4 would be multiples of 1/32, and those of a group
    often equal.
    """

    def __init__(self, decoder: nn.Module, score: nn.Linear, packing: Packing = PACKED) -> None:
        super().__init__()
        self.model = decoder
        self.packing = packing
        self.score = score

        def forward(self: nn.Linear, hidden: Tensor) -> Tensor:
            return linear(hidden.float(), self.weight.float())

        score.forward = MethodType(forward, score)  # type: ignore[method-assign]

    def forward(
        self, tokens: Tensor, positions: Tensor, layout: Layout, predictors: Tensor, targets: Tensor, temperature: float
    ) -> tuple[Tensor, None]:
        hidden = _read(self.model, tokens, positions, layout, predictors, self.packing)
        return self._scores(hidden), None

    def alone(self, tokens: Tensor, last: int) -> Tensor:
        """Return the scores at the tokens before the last ones of a text [L], by its own forward pass."""
        return self._scores(_alone(self.model, tokens)[-last - 1 : -1])

    def _scores(self, hidden: Tensor) -> Tensor:
        scores: Tensor = self.score(hidden)
        return scores[:, 0] if self.score.out_features == 1 else scores


def _read(
    decoder: nn.Module, tokens: Tensor, positions: Tensor, layout: Layout, predictors: Tensor, packing: Packing
) -> Tensor:
    """Return the hidden states from which the targets are predicted, for any packing: [T, h]."""
    layout = layout.arranged(packing)
    if layout.taken is None:
        return _hidden(decoder, tokens, positions, layout)[predictors]
    READING.layout = layout
    arranged = tokens[layout.taken]
    if layout.apart:
        states = decoder(input_ids=arranged, use_cache=False).last_hidden_state
    else:
        states = decoder(
            input_ids=arranged,
            position_ids=positions[layout.taken],
            attention_mask=torch.ones_like(arranged),
            use_cache=False,
        ).last_hidden_state
    return cast(Tensor, states.flatten(0, 1)[layout.read])


def _hidden(decoder: nn.Module, tokens: Tensor, positions: Tensor, layout: Layout) -> Tensor:
    """Return the hidden states of the packed positions: [S, h]."""
    READING.layout = layout
    # With a mask of ones transformers does not derive the ends of packed rows from the positions, which would be wrong
    # for completions that share a prompt.
    mask = torch.ones_like(tokens[None])
    output = decoder(input_ids=tokens[None], position_ids=positions[None], attention_mask=mask, use_cache=False)
    return cast(Tensor, output.last_hidden_state[0])


def _alone(decoder: nn.Module, tokens: Tensor) -> Tensor:
    return cast(Tensor, decoder(input_ids=tokens[None], use_cache=False).last_hidden_state[0])
