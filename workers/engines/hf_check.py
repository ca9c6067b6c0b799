"""Check at load time that a model computes the same for packed rows as for each text alone.

The check uses three texts: two short ones, of which one is the beginning of the other, and one that exceeds the
smallest attention window. They are packed like the rows of a micro-batch, two of them as completions of one prompt.
Only forward passes are run, the same on every rank; the model may be partitioned.
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
from workers.engines.base import ModelError
from workers.engines.hf_models import Module
from workers.engines.layout import layout_of
from workers.packing import Packed, pack
from workers.ragged import Ragged

PROMPT, ENDS = 5, (4, 9)  # tokens of the short prompt and of its two completions
PAST_WINDOW = 2  # length of the long text in windows
LONGEST = 4608  # maximum tokens of the long text: a window of 4096 and an eighth; its attention is not chunked
COMPARED = 32  # last tokens of the long text that are compared
LIMITS = {torch.float32: 1e-3, torch.bfloat16: 0.06}
"""Limit of the median difference between log-probabilities of a text's tokens, in nats. A wrong mask or position
changes nearly all tokens, whereas a token that rounding in bfloat16 routes to another expert changes alone."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Checked:
    """Result of a check. Example: `Checked(difference=2e-7, tokens=45, seconds=0.1)`."""

    difference: float  # largest median difference of a text, in nats or units of the head
    tokens: int  # length of the long text
    seconds: float

    def __str__(self) -> str:
        return (
            f"packed rows agree with the model's own forward pass to {self.difference:.1g} "
            f"(texts of up to {self.tokens} tokens, checked in {self.seconds:.1f} s)"
        )


def check_rows(module: Module, device: torch.device, *, path: str, longest: int) -> Checked:
    """Compare packed rows with each text alone, in the mode in which losses are computed.

    `longest` is the maximum number of tokens of the run's texts.

    Raises:
        ModelError: the results differ by more than rounding. The message names the suspected cause.
    """
    started = time.perf_counter()
    texts = _texts(module, longest)
    (first, second), long = (texts[0], texts[1]), texts[2]
    rows = [(first[:PROMPT], [first[PROMPT:], second[PROMPT:]]), (long[:-COMPARED], [long[-COMPARED:]])]
    try:
        with lora.called(module) as called:
            together = _outputs(module, device, _packed(rows))
        hf_models.set_loss_mode(module)
        in_loss_mode = _outputs(module, device, _packed(rows))
        module.eval()
        with torch.no_grad(), hf_packing.own_forward(module.model):
            ends = zip(texts, (*ENDS, COMPARED), strict=True)
            alone = [module.alone(torch.from_numpy(text).to(device), last) for text, last in ends]
            followed = torch.from_numpy(np.concatenate([first, long[:3]])).to(device)
            again = module.alone(followed, 3 + ENDS[0])[: ENDS[0]]
    except torch.OutOfMemoryError:
        raise
    except Exception as error:  # an unknown model may raise anything
        why = error if isinstance(error, AttentionError) else f"its forward pass fails ({error!r})"
        raise ModelError(f"{path}: models of this kind are not supported: {why}") from error
    _require_used(module, called, path)
    limit = LIMITS[next(module.parameters()).dtype]
    if _difference(alone[0], again) > limit:
        raise ModelError(f"{path}: its outputs for a text depend on what follows it: it is not a causal language model")
    if _difference(together, in_loss_mode) > limit:
        raise ModelError(
            f"{path}: its outputs differ between training mode and evaluation mode, so that a probability ratio would "
            "not start at 1; disable the randomness in its config"
        )
    differences = [_difference(a, b) for a, b in zip(alone, torch.split(together, [*ENDS, COMPARED]), strict=True)]
    if not all(difference <= limit for difference in differences):  # `not all`: so that NaN fails
        raise ModelError(
            f"{path}: packed rows differ from its own forward pass by {max(differences):.2g} (median; rounding is at "
            f"most {limit:g}); suspected: {_suspected(module, differences, limit)}"
        )
    checked = Checked(difference=max(differences), tokens=len(long), seconds=time.perf_counter() - started)
    print(f"{path}: {checked}", flush=True)  # in the log of the role
    return checked


def _require_used(module: Module, called: set[str], path: str) -> None:
    """Raise ModelError if a layer with an adapter was not called.

    Some models read the weights of a layer without calling it: an adapter there would not be trained, but be merged.
    Experts are exempt, because no token may have been routed to them.
    """
    unused = sorted(name for name in lora.adapters(module) if name not in called and "expert" not in name)
    if unused:
        names = sorted({name.rpartition(".")[2] for name in unused})
        raise ModelError(
            f"{path}: adapters in {', '.join(names)} would have no effect, as the model reads the weights of "
            f"{len(unused)} such layers itself ({unused[0]}); leave them out of model.lora.target_modules"
        )


def _texts(module: Module, longest: int) -> list[Any]:
    """Draw the two short texts and the long one from ordinary tokens, int64."""
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


def _outputs(module: Module, device: torch.device, packed: Packed) -> Tensor:
    arrays = (packed.tokens, packed.positions, packed.predictors, packed.targets)
    tokens, positions, predictors, targets = (torch.from_numpy(a.astype(np.int64)).to(device) for a in arrays)
    with torch.no_grad():
        outputs: Tensor = module(tokens, positions, layout_of(packed, device), predictors, targets, 1.0)[0]
    return outputs


def _difference(one: Tensor, other: Tensor) -> float:
    """Return the median absolute difference; NaN if a value is not finite."""
    return float((one.float() - other.float()).abs().median())


def _suspected(module: Module, differences: list[float], limit: float) -> str:
    config = _text_config(module)
    layers = sorted(set(getattr(config, "layer_types", None) or ()))
    kinds = f" (layers of type {', '.join(layers)})" if layers else ""
    if max(differences[:2]) <= limit:
        return f"operations that depend on the length of a text: windows, chunks, positions{kinds}"
    return f"layers that mix the texts of a row, or operations after the decoder{kinds}"
