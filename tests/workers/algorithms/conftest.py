"""Builders of small, literal batches. Arrays are read-only, like those from Ray's object store."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import fields, is_dataclass
from typing import Any

import numpy as np
import pytest
import torch

from workers.algorithms.base import MicroBatch, totals_of
from workers.ragged import Ragged, TokenVectors
from workers.types import (
    Experience,
    Finish,
    Prompt,
    ScoredBatch,
    TokenShard,
    TrainBatch,
    assemble_vectors,
)


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture
def scored() -> Callable[..., ScoredBatch]:
    return _scored


@pytest.fixture
def make_read_only() -> Callable[[Any], None]:
    return _make_read_only


@pytest.fixture
def micro_batch() -> Callable[..., MicroBatch]:
    return _micro_batch


def _scored(
    lengths: Sequence[Sequence[int]],
    *,
    rewards: Sequence[float] | None = None,
    logprobs: Sequence[float] | None = None,
    reference: Sequence[float] | None = None,
    values: Sequence[float] | None = None,
    hidden: Sequence[Sequence[float]] | None = None,
    finish: Sequence[Finish] | None = None,
    seed: int = 0,
) -> ScoredBatch:
    """Return groups of completions of these lengths: `[[2, 1], [3]]` is a prompt with two and a prompt with one.

    Prompt g has g + 1 tokens, all 100 + g; completion i consists of tokens i. Per-token fields are flat.
    """
    flat = [length for group in lengths for length in group]
    floats = [None if x is None else np.array(x, np.float32) for x in (rewards, logprobs, reference, values)]
    experience = Experience(
        prompts=tuple(Prompt(id=str(g), text="") for g in range(len(lengths))),
        prompt_tokens=Ragged.of([[100 + g] * (g + 1) for g in range(len(lengths))]),
        completions=Ragged.of([[i] * length for i, length in enumerate(flat)]),
        group_offsets=np.cumsum([0, *(len(group) for group in lengths)]),
        logprobs=floats[1],
        versions=np.zeros(len(flat), np.int32),
        finish=np.asarray([Finish.stop] * len(flat) if finish is None else finish, np.int32),
    )
    whole = TokenShard(completions=np.arange(len(flat)), values=np.array(hidden, np.float32))
    scored = ScoredBatch(
        experience=experience,
        rewards=floats[0],
        reference_logprobs=floats[2],
        values=floats[3],
        reference_hidden=None if hidden is None else assemble_vectors([whole], experience.completions),
        seed=seed,
    )
    _make_read_only(scored)
    return scored


def _micro_batch(lengths: Sequence[Sequence[int]], **arrays: Sequence[float] | TokenVectors) -> MicroBatch:
    """Return a micro-batch that is the whole update: rows of completions of these lengths, fields of TrainBatch."""
    flat = [length for row in lengths for length in row]
    batch = TrainBatch(
        prompts=Ragged.of([[1]] * len(lengths)),
        completions=Ragged.of([[i] * length for i, length in enumerate(flat)]),
        row_offsets=np.cumsum([0, *(len(row) for row in lengths)]),
        **{
            name: values if isinstance(values, TokenVectors) else np.array(values, np.float32)
            for name, values in arrays.items()
        },
    )
    _make_read_only(batch)
    rows = np.arange(batch.num_rows)
    return MicroBatch.of(batch, rows, totals_of(batch, rows))


def _make_read_only(value: Any) -> None:
    if isinstance(value, np.ndarray):
        value.setflags(write=False)
    elif is_dataclass(value):
        for field in fields(value):
            _make_read_only(getattr(value, field.name))
