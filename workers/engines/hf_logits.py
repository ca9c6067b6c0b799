"""Detection of the logit transform of a transformers model, by running the model's own code."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from workers.engines.heads import decoder_of, output_layer_of
from workers.engines.logits import LogitTransform, fit

TRIED = (-3.0, 5.0)  # logits from 10^-3, which a soft-cap leaves alone, to 10^5, which it caps completely


class Unrecognised(Exception):
    """A model transforms its logits by neither a factor nor a soft-cap. The message says what is known."""


def logit_transform(model: Any) -> LogitTransform:
    """Return the transform that a causal language model applies around its output layer.

    The model's own forward pass is run with stubs for embeddings, decoder and output layer that return known numbers.
    The weights are not used, so they may be partitioned or without storage.

    Raises:
        Unrecognised: the transform has no known form.
    """
    head, decoder = output_layer_of(model), decoder_of(model)
    base = model.base_model if model.base_model is not model else decoder  # models call one or the other
    if not isinstance(head, nn.Linear):
        raise Unrecognised(f"its output layer is of type {type(head).__name__}, not a linear one")
    hidden = 2.0 ** (torch.arange(head.in_features) % 3)[None, None]  # the same in every precision
    sizes = torch.logspace(*TRIED, head.out_features)
    known_logits = torch.where(torch.arange(head.out_features) % 2 == 0, sizes, -sizes)
    inputs: list[Tensor] = []  # of the output layer

    def stub_head(states: Tensor, *_: Any, **__: Any) -> Tensor:
        inputs.append(states)
        return known_logits.expand(*states.shape[:-1], -1).clone()

    def stub_decoder(*_: Any, **__: Any) -> Any:
        return _Output(hidden.clone())

    def stub_embedding(tokens: Tensor, *_: Any, **__: Any) -> Tensor:  # some composites embed before their decoder
        return hidden.new_zeros((*tokens.shape, embedding.embedding_dim))

    embedding = model.get_input_embeddings()
    with ExitStack() as stack:
        stack.enter_context(torch.no_grad())
        for module, forward in ((base, stub_decoder), (decoder, stub_decoder), (head, stub_head)):
            stack.enter_context(_stubbed(module, forward))
        if isinstance(embedding, nn.Embedding):
            stack.enter_context(_stubbed(embedding, stub_embedding))
        try:
            logits = model(input_ids=torch.zeros((1, 1), dtype=torch.int64), use_cache=False).logits
        except Exception as error:
            raise Unrecognised(f"its forward pass cannot be followed ({type(error).__name__}: {error})") from error
    if len(inputs) != 1 or inputs[0].shape[-1] != head.in_features:
        raise Unrecognised("its output layer is not called once with its decoder's hidden states")
    ratios = inputs[0].float().reshape(-1, head.in_features)[-1] / hidden[0, 0]
    if not torch.allclose(ratios, ratios[0], rtol=1e-5):
        raise Unrecognised("it has further layers between its decoder and its output layer")
    transform = fit(known_logits, logits.float().reshape(-1, logits.shape[-1])[-1], float(ratios[0]))
    if transform is None:
        raise Unrecognised("it does more to its logits than scale or soft-cap them")
    return transform


class _Output:
    """Output of a decoder: its last hidden states, and None for every other field."""

    def __init__(self, states: Tensor) -> None:
        self.last_hidden_state = states

    def __getattr__(self, name: str) -> None:
        if name.startswith("__"):
            raise AttributeError(name)

    def __getitem__(self, index: int | slice) -> Any:
        return (self.last_hidden_state,)[index]


@contextmanager
def _stubbed(module: Any, forward: Any) -> Iterator[None]:
    own = module.__dict__.get("forward")
    module.forward = forward
    try:
        yield
    finally:
        del module.forward
        if own is not None:
            module.forward = own
