"""Tiny models with tokenizers, made once per session: a tied Qwen2 with a character tokenizer, an untied Llama with
BPE and a chat template. Their weights are large, so that attention is far from uniform and a wrong mask is visible."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from configs.quickstart.tiny import bpe_tokenizer, character_tokenizer, create_model

ALPHABET = "abcdefgh>:"  # ids from 3: <pad> 0, <eos> 1, <unk> 2
SIZES = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "initializer_range": 0.2,
}
CHAT = (
    "{% for m in messages %}<|{{ m.role }}|>{{ m.content }}</s>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def qwen2(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("models") / "qwen2"
    create_model(
        directory, {"model_type": "qwen2", "tie_word_embeddings": True, **SIZES}, character_tokenizer(ALPHABET), seed=0
    )
    return directory


@pytest.fixture(scope="session")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("models") / "llama"
    tokenizer = bpe_tokenizer(["what is two and two", "it is four"], 280, CHAT)
    create_model(directory, {"model_type": "llama", "tie_word_embeddings": False, **SIZES}, tokenizer, seed=1)
    return directory


@pytest.fixture(params=["qwen2", "llama"])
def model(request: pytest.FixtureRequest) -> Path:
    """Return the path of each family's model."""
    path: Path = request.getfixturevalue(request.param)
    return path
