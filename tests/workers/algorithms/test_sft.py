from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from workers.algorithms.base import MicroBatch
from workers.algorithms.sft import loss, prepare
from workers.config import SftConfig
from workers.types import ScoredBatch

CONFIG = SftConfig(type="sft")


def test_the_first_completion_of_each_prompt_is_trained_on(scored: Callable[..., ScoredBatch]) -> None:
    batch, metrics = prepare(scored([[2], [1, 3]]), CONFIG)
    assert [completion.tolist() for completion in batch.completions] == [[0, 0], [1]]
    assert [prompt.tolist() for prompt in batch.prompts] == [[100], [101, 101]]
    assert batch.row_offsets.tolist() == [0, 1, 2]
    assert metrics == {"num_tokens": 1 + 2 + 2 + 1}


def test_a_prompt_without_completion_is_refused(scored: Callable[..., ScoredBatch]) -> None:
    with pytest.raises(AssertionError, match="needs a completion"):
        prepare(scored([[1], []]), CONFIG)


def test_loss_is_the_mean_over_tokens(micro_batch: Callable[..., MicroBatch]) -> None:
    logprobs = torch.tensor([-1.0, -2.0, -6.0], requires_grad=True)
    value, stats = loss(logprobs, micro_batch([[2], [1]]), CONFIG)
    value.backward()
    assert value.item() == stats["loss"].item() == 3.0
    assert logprobs.grad is not None
    assert logprobs.grad.tolist() == pytest.approx([-1 / 3] * 3)
