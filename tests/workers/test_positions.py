"""Maximum sequence length from config.json, as vLLM derives it, for configs of common models."""

from __future__ import annotations

from typing import Any

import pytest

from workers.positions import positions_of, unstretched_positions_of

CASES: tuple[tuple[str, dict[str, Any], int | None], ...] = (
    ("llama", {"max_position_embeddings": 8192}, 8192),
    ("gpt-2", {"n_positions": 1024, "n_ctx": 1024}, 1024),
    ("mpt", {"max_seq_len": 2048}, 2048),
    ("bloom", {"seq_length": 2048}, 2048),
    ("mamba", {"hidden_size": 768}, None),
    ("null", {"max_position_embeddings": None}, None),
    ("nonsense", {"max_position_embeddings": "many"}, None),
    ("the smallest counts", {"max_position_embeddings": 4096, "max_seq_length": 2048}, 2048),
    ("command-r", {"max_position_embeddings": 8192, "model_max_length": 131072}, 131072),
    ("composite", {"text_config": {"max_position_embeddings": 131072}, "vision_config": {"n_positions": 9}}, 131072),
    ("linear", {"max_position_embeddings": 4096, "rope_scaling": {"type": "linear", "factor": 2.0}}, 8192),
    ("dynamic", {"max_position_embeddings": 4096, "rope_scaling": {"rope_type": "dynamic", "factor": 4}}, 16384),
    (
        "llama 3.1: its limit counts the scaling",
        {
            "max_position_embeddings": 131072,
            "rope_scaling": {"rope_type": "llama3", "factor": 8.0, "original_max_position_embeddings": 8192},
        },
        131072,
    ),
    (
        "yarn: in the limit",
        {
            "max_position_embeddings": 131072,
            "rope_scaling": {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32768},
        },
        131072,
    ),
    (
        "longrope (phi 3.5)",
        {
            "max_position_embeddings": 131072,
            "original_max_position_embeddings": 4096,
            "rope_scaling": {"type": "longrope", "short_factor": [1.0], "long_factor": [2.0]},
        },
        131072,
    ),
    ("no factor", {"max_position_embeddings": 4096, "rope_scaling": {"type": "linear", "factor": None}}, 4096),
    (
        "gemma 3: a scaling per kind of layer, counted already",
        {
            "model_type": "gemma3_text",
            "max_position_embeddings": 131072,
            "rope_parameters": {
                "full_attention": {"rope_type": "linear", "factor": 8.0},
                "sliding_attention": {"rope_type": "default"},
            },
        },
        131072,
    ),
    (
        "a scaling per kind of layer",
        {
            "max_position_embeddings": 1000,
            "rope_parameters": {"full": {"rope_type": "linear", "factor": 3.0}, "other": {"rope_type": "default"}},
        },
        3000,
    ),
)  # fmt: skip


@pytest.mark.parametrize(("config", "expected"), [case[1:] for case in CASES], ids=[case[0] for case in CASES])
def test_positions(config: dict[str, Any], expected: int | None) -> None:
    assert positions_of(config) == expected


def test_positions_that_do_not_depend_on_a_texts_length() -> None:
    dynamic, longrope = {"rope_type": "dynamic", "factor": 4.0}, {"type": "longrope"}
    assert unstretched_positions_of({"max_position_embeddings": 2048, "rope_scaling": dynamic}) == 2048
    phi3 = {"max_position_embeddings": 131072, "original_max_position_embeddings": 4096, "rope_scaling": longrope}
    assert unstretched_positions_of(phi3) == 4096
    new = {"rope_parameters": {**longrope, "original_max_position_embeddings": 512}}
    assert unstretched_positions_of({"text_config": {"max_position_embeddings": 4096, **new}}) == 512
    assert unstretched_positions_of({"max_position_embeddings": 2048}) is None
    yarn = {"rope_type": "yarn", "original_max_position_embeddings": 512}
    assert unstretched_positions_of({"max_position_embeddings": 2048, "rope_scaling": yarn}) is None
