"""A check at load that a model answers for packed rows what it answers for each text alone, by its own forward pass.

Three texts: two short ones of which one begins the other, and one that is longer than the smallest attention window.
They are packed as rows of a micro-batch are, two of them as completions of one prompt. Forward passes alone, on every
rank the same; the model may be partitioned.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from workers.engines import hf_models, hf_packing, lora
from workers.engines.attention import AttentionError
from workers.engines.hf_models import ModelError, Module
from workers.engines.layout import layout_of
from workers.packing import Packed, pack
from workers.types import Ragged

PROMPT, ENDS = 5, (4, 9)  # tokens of the short prompt, and of its two completions
PAST_WINDOW = 2  # how many windows the long text is long
LONGEST = 4608  # tokens of the long text at most: a window of 4096 and an eighth; attention is not chunked here
COMPARED = 32  # last tokens of the long text
LIMITS = {torch.float32: 1e-3, torch.bfloat16: 0.06}
"""Median difference of the log-probabilities of a text's tokens, in nats. A wrong mask or position moves nearly all of
them; in bfloat16 a token that is routed to another expert by rounding moves alone."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Checked:
    """What a check found. Example: `Checked(difference=2e-7, tokens=45, seconds=0.1)`."""

    difference: float  # the largest median difference of a text, in nats or units of the head
    tokens: int  # of the long text
    seconds: float

    def __str__(self) -> str:
        return (
            f"packed rows agree with its own forward pass to {self.difference:.1g} "
            f"(texts of up to {self.tokens} tokens, checked in {self.seconds:.1f} s)"
        )


def check_rows(module: Module, device: torch.device, *, path: str, longest: int) -> Checked:
    """Compare packed rows with each text alone, in the mode in which losses are computed. `longest`: no text of the run
    has more tokens.

    Raises:
        ModelError: they differ by more than rounding; the message says what is suspected.
    """
    started = time.perf_counter()
    texts = _texts(module, longest)
    (first, second), long = (texts[0], texts[1]), texts[2]
    rows = [(first[:PROMPT], [first[PROMPT:], second[PROMPT:]]), (long[:-COMPARED], [long[-COMPARED:]])]
    try:
        with lora.called(module) as called:
            together = _answers(module, device, _packed(rows))
        hf_models.learning(module)
        learning = _answers(module, device, _packed(rows))
        module.eval()
        with torch.no_grad(), hf_packing.own_forward(module.model):
            given = zip(texts, (*ENDS, COMPARED), strict=True)
            alone = [module.alone(torch.from_numpy(text).to(device), last) for text, last in given]
            followed = torch.from_numpy(np.concatenate([first, long[:3]])).to(device)
            again = module.alone(followed, 3 + ENDS[0])[: ENDS[0]]
    except torch.OutOfMemoryError:
        raise
    except Exception as error:  # whatever a model that was never run over rows makes of them
        why = error if isinstance(error, AttentionError) else f"its forward pass breaks ({error!r})"
        raise ModelError(f"{path}: models of this kind are not supported: {why}") from error
    _require_used(module, called, path)
    limit = LIMITS[next(module.parameters()).dtype]
    if _gap(alone[0], again) > limit:
        raise ModelError(f"{path}: its answers to a text change with what follows it: it is no causal language model")
    if _gap(together, learning) > limit:
        raise ModelError(
            f"{path}: it answers differently in training mode than in evaluation mode, so a ratio of probabilities "
            "would not start at 1; switch off what is random in its config"
        )
    gaps = [_gap(a, b) for a, b in zip(alone, torch.split(together, [*ENDS, COMPARED]), strict=True)]
    if not all(gap <= limit for gap in gaps):  # NaN is not
        raise ModelError(
            f"{path}: packed rows get other answers than by its own forward pass, {max(gaps):.2g} off (median; at most "
            f"{limit:g} is rounding); suspected: {_suspected(module, gaps, limit)}"
        )
    found = Checked(difference=max(gaps), tokens=len(long), seconds=time.perf_counter() - started)
    print(f"{path}: {found}", flush=True)  # in the log of the role
    return found


def _require_used(module: Module, called: set[str], path: str) -> None:
    """Some layers' weights are read without calling the layer: an adapter there would learn nothing, and be merged.
    Experts that no token was sent to are not called either, and are right."""
    idle = sorted(name for name in lora.adapters(module) if name not in called and "expert" not in name)
    if idle:
        names = sorted({name.rpartition(".")[2] for name in idle})
        raise ModelError(
            f"{path}: adapters in {', '.join(names)} would have no effect, as the model reads the weights of "
            f"{len(idle)} such layers itself ({idle[0]}); leave them out of model.lora.target_modules"
        )


def _texts(module: Module, longest: int) -> list[Any]:
    """The short texts and the long one, int64: tokens that mean nothing special."""
    config = _text_config(module)
    window = min(_windows(config), default=0)
    length = PAST_WINDOW * window + COMPARED
    positions = getattr(config, "max_position_embeddings", None) or length
    length = max(COMPARED + 2, min(length, longest, LONGEST, positions))
    tokens = np.random.Generator(np.random.Philox(0)).integers(3, max(4, min(int(config.vocab_size), 1000)), 2 * length)
    first = tokens[: PROMPT + ENDS[0]]
    return [first, np.concatenate([first, tokens[length : length + ENDS[1] - ENDS[0]]]), tokens[-length:]]


def _text_config(module: Module) -> Any:
    model: Any = module.model
    return model.config.get_text_config(decoder=True)


def _windows(config: Any) -> Iterator[int]:
    for name in ("sliding_window", "attention_chunk_size"):
        size = getattr(config, name, None)
        if isinstance(size, int) and size > 0:
            yield size


def _packed(rows: list[tuple[Any, list[Any]]]) -> Packed:
    prompts, groups = zip(*rows, strict=True)
    offsets = np.cumsum([0, *(len(group) for group in groups)])
    completions = [tokens for group in groups for tokens in group]
    return pack(Ragged.of(prompts), Ragged.of(completions), offsets, np.arange(len(rows)))


def _answers(module: Module, device: torch.device, packed: Packed) -> Tensor:
    arrays = (packed.tokens, packed.positions, packed.predictors, packed.targets)
    tokens, positions, predictors, targets = (torch.from_numpy(a.astype(np.int64)).to(device) for a in arrays)
    with torch.no_grad():
        found: Tensor = module(tokens, positions, layout_of(packed, device), predictors, targets, 1.0)[0]
    return found


def _gap(one: Tensor, other: Tensor) -> float:
    """Median absolute difference; NaN where one is not finite, which no limit holds for."""
    return float((one.float() - other.float()).abs().median())


def _suspected(module: Module, gaps: list[float], limit: float) -> str:
    config = _text_config(module)
    layers = sorted(set(getattr(config, "layer_types", None) or ()))
    kinds = f" (layers of type {', '.join(layers)})" if layers else ""
    if max(gaps[:2]) <= limit:
        return f"what depends on the length of a text: windows, chunks, positions{kinds}"
    return f"layers that mix what stands in one row, or what follows the decoder{kinds}"
