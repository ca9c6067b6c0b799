"""Buffers that a model computes from its config: frequencies of rotary embeddings, scales, masks.

Checkpoints do not contain them. transformers computes them in float32 after loading, whatever the dtype of the weights.
Under ZeRO-3, however, DeepSpeed casts every tensor that a constructor makes to the dtype of the weights. A rotary
frequency rounded to bfloat16 is off by up to 1 part in 512: at position 600 a rotation is off by a radian.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from copy import deepcopy
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel


def recompute(module: nn.Module) -> None:
    """Replace the computed buffers of the models in `module` by exactly those of plain transformers.

    Call it after loading, when DeepSpeed no longer partitions new tensors.
    """
    for model in _outermost(module):
        owners = _computed(model)
        for name, buffer in _by_transformers(model).items():
            owner, attribute = owners[name]
            setattr(owner, attribute, buffer.to(getattr(owner, attribute).device))


def _outermost(module: nn.Module) -> Iterator[PreTrainedModel]:
    """Yield the models of transformers that are not part of another one."""
    if isinstance(module, PreTrainedModel):
        yield module
        return
    for child in module.children():
        yield from _outermost(child)


def _computed(model: nn.Module) -> dict[str, tuple[nn.Module, str]]:
    """Return (owner, attribute) of every buffer that is not part of a checkpoint, by name."""
    return {
        f"{name}.{attribute}".replace(".base_layer.", "."): (owner, attribute)
        for name, owner in model.named_modules()
        for attribute, _ in owner.named_buffers(recurse=False, remove_duplicate=False)
        if attribute in owner._non_persistent_buffers_set
    }


def _by_transformers(model: PreTrainedModel) -> dict[str, Tensor]:
    """Compute the buffers of a model of this class and config like `from_pretrained`, without allocating weights."""
    with torch.random.fork_rng(devices=[]), ExitStack() as stack:
        for context in type(model).get_init_context(model.dtype, False, False, None):
            stack.enter_context(context)
        empty: Any = type(model)(deepcopy(model.config))
    for tensor in (*empty.parameters(), *empty.buffers()):
        tensor._is_hf_initialized = True  # so that `initialize_weights` leaves it alone
    for part in empty.modules():
        part.__dict__.pop("_is_hf_initialized", None)
    computed = _computed(empty)
    for owner, attribute in computed.values():
        setattr(owner, attribute, torch.empty_like(getattr(owner, attribute), device="cpu"))
    with torch.random.fork_rng(devices=[]):
        empty.initialize_weights()
    return {name: getattr(owner, attribute) for name, (owner, attribute) in computed.items()}
