"""A vLLM engine on a GPU: it agrees with the learner before and after a publication."""

from __future__ import annotations

from collections.abc import Callable
from importlib.util import find_spec

import pytest

LLAMA = {
    "hidden_size": 1024,
    "intermediate_size": 4096,
    "num_hidden_layers": 16,
    "num_attention_heads": 16,
    "num_key_value_heads": 8,
    "max_position_embeddings": 2048,
    "tie_word_embeddings": False,
    "initializer_range": 0.05,
}


@pytest.mark.skipif(find_spec("vllm") is None, reason="vllm is not installed: pip install '.[gpu]'")
def test_engine_and_learner_agree_before_and_after_a_publication(measure: Callable[..., None]) -> None:
    measure("engine_check.py", "agreement", shape=LLAMA, dtype="bfloat16", prompts=16, length=256)
