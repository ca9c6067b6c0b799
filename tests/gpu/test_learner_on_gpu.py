"""One ZeRO-3 rank over NCCL in bfloat16: equal to plain transformers, and within the planner's memory."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

LLAMA: dict[str, Any] = {
    "vocab_size": 128256,
    "max_position_embeddings": 32768,
    "rope_parameters": {"rope_type": "default", "rope_theta": 500000.0},
    "num_key_value_heads": 8,
    "tie_word_embeddings": False,
}
LLAMA_1B = {**LLAMA, "hidden_size": 2048, "intermediate_size": 8192, "num_hidden_layers": 16, "num_attention_heads": 32}
LLAMA_8B = {
    **LLAMA,
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
}
COMMON: dict[str, Any] = {"dtype": "bfloat16"}


@pytest.mark.parametrize(
    ("tokens", "settings"),
    [
        (8192, {"gradient_checkpointing": True}),
        (8192, {}),
        (16384, {"gradient_checkpointing": True}),
        (8192, {"gradient_checkpointing": True, "zero_stage": 1}),
    ],
)
def test_a_learner_of_1b(measure: Callable[..., None], tokens: int, settings: dict[str, Any]) -> None:
    saves = tokens == 8192 and "gradient_checkpointing" in settings
    measure("learner_check.py", "learning", **COMMON, shape=LLAMA_1B, tokens=tokens, settings=settings, saves=saves)


def test_a_learner_with_its_optimizer_in_host_memory(measure: Callable[..., None]) -> None:
    settings = {"gradient_checkpointing": True, "offload_optimizer": True}
    measure("learner_check.py", "learning", **COMMON, shape=LLAMA_1B, tokens=8192, settings=settings)


def test_adapters_of_8b(measure: Callable[..., None]) -> None:
    settings = {"gradient_checkpointing": True}
    lora = {"r": 32, "lora_alpha": 64}
    measure(
        "learner_check.py", "learning", **COMMON, shape=LLAMA_8B, tokens=16384, settings=settings, lora=lora, saves=True
    )
