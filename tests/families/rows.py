"""Rows of prompts with completions, and the log-probabilities of plain transformers for each text alone."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from workers.engines.layout import layout_of
from workers.packing import Packed, pack
from workers.ragged import Ragged

VOCABULARY = range(3, 93)  # tokens without a special meaning

# Lengths of prompts and of their completions: shared prompts, texts much shorter and much longer than a window of 6 or
# a chunk of 8, and a completion of one token, which is never an input.
LENGTHS = [(4, (4, 3, 6)), (19, (3, 5)), (2, (1,)), (5, (9,)), (1, (2, 3, 4, 1, 3)), (50, (31, 3))]


def rows_of(lengths: Sequence[tuple[int, Sequence[int]]] = LENGTHS, seed: int = 0) -> list[tuple[Any, list[Any]]]:
    """Return rows of random tokens with these lengths, each as (prompt, completions)."""
    rng = np.random.Generator(np.random.Philox(seed))

    def draw(count: int) -> Any:
        return rng.integers(VOCABULARY.start, VOCABULARY.stop, count)

    return [(draw(prompt), [draw(n) for n in completions]) for prompt, completions in lengths]


def packed(rows: Sequence[tuple[Any, list[Any]]], pad: int | None = None) -> Packed:
    prompts, groups = zip(*rows, strict=True)
    offsets = np.cumsum([0, *(len(group) for group in groups)])
    flat = [tokens for group in groups for tokens in group]
    return pack(Ragged.of(prompts), Ragged.of(flat), offsets, np.arange(len(rows)), pad)


def forward_packed(module: Any, batch: Packed, temperature: float = 1.0) -> Any:
    """Return a module's log-probability and entropy for each token of a micro-batch, on the CPU."""
    arrays = (batch.tokens, batch.positions, batch.predictors, batch.targets)
    tokens, positions, predictors, targets = (torch.from_numpy(a.astype(np.int64)) for a in arrays)
    return module(tokens, positions, layout_of(batch, torch.device("cpu")), predictors, targets, temperature)


def forward_alone(model: Any, rows: Sequence[tuple[Any, list[Any]]], temperature: float = 1.0) -> tuple[Tensor, Tensor]:
    """Return log-probabilities and entropies of the completion tokens from a plain model, one text at a time."""
    logprobs, entropies = [], []
    for prompt, completions in rows:
        for completion in completions:
            text = torch.from_numpy(np.concatenate([prompt, completion]))[None]
            as_new(model)
            logits = model(input_ids=text, use_cache=False).logits[0].float() / temperature
            every = logits.log_softmax(-1)[len(prompt) - 1 : -1]
            logprobs.append(every.gather(1, torch.from_numpy(completion)[:, None])[:, 0])
            entropies.append(-(every.exp() * every).sum(-1))
    return torch.cat(logprobs), torch.cat(entropies)


def as_new(model: Any) -> None:
    """Reset dynamic RoPE, which remembers the longest text so far, to its state after loading."""
    for module in model.modules():
        if hasattr(module, "original_inv_freq") and hasattr(module, "max_seq_len_cached"):
            module.max_seq_len_cached = module.original_max_seq_len
            module.inv_freq = module.original_inv_freq
