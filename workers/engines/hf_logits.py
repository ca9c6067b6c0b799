"""What a model of transformers does to its logits, found by asking its own code."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from workers.engines.heads import decoder_of, output_layer_of
from workers.engines.logits import LogitTransform, fitted

TRIED = (-3.0, 5.0)  # logits of 10^-3, where a soft-cap does nothing, to 10^5, where it does all


class Unrecognised(Exception):
    """A model does something to its logits that is neither a factor nor a soft-cap; the message says what is known."""


def logit_transform(model: Any) -> LogitTransform:
    """Return what a causal language model does between its decoder's hidden states and its logits, beside its output
    layer. Its own forward pass is run with embeddings, a decoder and an output layer that answer known numbers, so its
    weights may be anywhere.

    Raises:
        Unrecognised: it is of no known form.
    """
    head, decoder = output_layer_of(model), decoder_of(model)
    base = model.base_model if model.base_model is not model else decoder  # whichever of the two it calls
    if not isinstance(head, nn.Linear):
        raise Unrecognised(f"its output layer is of type {type(head).__name__}, not a linear one")
    hidden = 2.0 ** (torch.arange(head.in_features) % 3)[None, None]  # the same in every precision
    sizes = torch.logspace(*TRIED, head.out_features)
    given = torch.where(torch.arange(head.out_features) % 2 == 0, sizes, -sizes)
    asked: list[Tensor] = []

    def answer(states: Tensor, *_: Any, **__: Any) -> Tensor:
        asked.append(states)
        return given.expand(*states.shape[:-1], -1).clone()

    def read(*_: Any, **__: Any) -> Any:
        return _Output(hidden.clone())

    def embed(tokens: Tensor, *_: Any, **__: Any) -> Tensor:  # some composites embed before they call their decoder
        return hidden.new_zeros((*tokens.shape, embedding.embedding_dim))

    embedding = model.get_input_embeddings()
    with ExitStack() as stack:
        stack.enter_context(torch.no_grad())
        for module, forward in ((base, read), (decoder, read), (head, answer)):
            stack.enter_context(_standing_in(module, forward))
        if isinstance(embedding, nn.Embedding):
            stack.enter_context(_standing_in(embedding, embed))
        try:
            logits = model(input_ids=torch.zeros((1, 1), dtype=torch.int64), use_cache=False).logits
        except Exception as error:
            raise Unrecognised(f"its forward pass cannot be followed ({type(error).__name__}: {error})") from error
    if len(asked) != 1 or asked[0].shape[-1] != head.in_features:
        raise Unrecognised("its output layer is not called once with its decoder's hidden states")
    ratios = asked[0].float().reshape(-1, head.in_features)[-1] / hidden[0, 0]
    if not torch.allclose(ratios, ratios[0], rtol=1e-5):
        raise Unrecognised("it has further layers between its decoder and its output layer")
    found = fitted(given, logits.float().reshape(-1, logits.shape[-1])[-1], float(ratios[0]))
    if found is None:
        raise Unrecognised("it does more to its logits than to scale or soft-cap them")
    return found


class _Output:
    """A decoder's answer: its last hidden states, and None for all else that a model may look at."""

    def __init__(self, states: Tensor) -> None:
        self.last_hidden_state = states

    def __getattr__(self, name: str) -> None:
        if name.startswith("__"):
            raise AttributeError(name)

    def __getitem__(self, index: int | slice) -> Any:
        return (self.last_hidden_state,)[index]


@contextmanager
def _standing_in(module: Any, forward: Any) -> Iterator[None]:
    own = module.__dict__.get("forward")
    module.forward = forward
    try:
        yield
    finally:
        del module.forward
        if own is not None:
            module.forward = own
