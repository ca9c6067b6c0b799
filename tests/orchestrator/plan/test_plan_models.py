"""Model shapes: parameter counts, and where shapes are found."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from orchestrator.errors import BadInput
from orchestrator.plan.models import TABLE, find, read

LLAMA = {
    "hidden_size": 4096,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "intermediate_size": 14336,
    "vocab_size": 128256,
}


def test_llama_8b_by_hand() -> None:
    shape = TABLE["llama-3-8b"]
    # q and o: 2 x 4096 x 4096; k and v: 2 x 4096 x 1024; two norms: 2 x 4096
    assert shape.attention_params == 33_554_432 + 8_388_608 + 8_192
    # gate, up and down: 3 x 4096 x 14336 = 176,160,768
    assert shape.layer_params == 41_951_232 + 176_160_768
    # 32 layers, embedding and output layer of 128256 x 4096 = 525,336,576 each, the last norm: the published count
    assert shape.num_params == 32 * 218_112_000 + 2 * 525_336_576 + 4096 == 8_030_261_248
    # keys and values, 32 layers, 8 heads of 128, 2 bytes: 131 kB per token
    assert shape.kv_bytes_per_token == 2 * 32 * 1024 * 2 == 131_072


def test_a_mixture_counts_all_experts_and_uses_some() -> None:
    shape = TABLE["mixtral-8x7b"]
    # An expert: 3 x 4096 x 14336 = 176,160,768. 32 layers with 8 of them, of which 6 are idle for a token.
    assert shape.num_params - shape.active_params == 32 * 6 * 176_160_768
    assert shape.num_params == pytest.approx(46.7e9, rel=2e-3)  # published: 46.7 B, 12.9 B active
    assert shape.active_params == pytest.approx(12.9e9, rel=2e-3)


@pytest.mark.parametrize(
    ("name", "billions"),
    [
        ("llama-3-70b", 70.6),
        ("llama-3-405b", 405.9),
        ("llama-3.2-1b", 1.236),
        ("qwen2.5-0.5b", 0.494),
        ("qwen2.5-7b", 7.62),
        ("qwen2.5-72b", 72.7),
        ("qwen3-0.6b", 0.596),
        ("qwen3-32b", 32.8),
        ("qwen3-30b-a3b", 30.5),
        ("qwen3-235b-a22b", 235.1),
        ("mixtral-8x22b", 140.6),
    ],
)
def test_the_table_has_the_published_sizes(name: str, billions: float) -> None:
    assert TABLE[name].num_params == pytest.approx(billions * 1e9, rel=3e-3)


@pytest.mark.parametrize(
    ("path", "name"),
    [
        ("meta-llama/Llama-3.3-70B-Instruct", "llama-3-70b"),
        ("meta-llama/Meta-Llama-3-8B", "llama-3-8b"),
        ("Qwen/Qwen3-30B-A3B-Instruct-2507", "qwen3-30b-a3b"),
        ("Qwen/Qwen2.5-Math-7B-Instruct", "qwen2.5-7b"),
        ("mistralai/Mixtral-8x7B-Instruct-v0.1", "mixtral-8x7b"),
    ],
)
def test_hub_ids_are_known_offline(path: str, name: str) -> None:
    assert find(path) is TABLE[name]


def test_shapes_are_read_from_a_directory_and_the_hub_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    local = tmp_path / "model"
    local.mkdir()
    (local / "config.json").write_text(json.dumps(LLAMA))
    shape = find(str(local))
    assert shape is not None
    assert (shape.name, shape.num_params, shape.head_dim) == ("model", 8_030_261_248, 128)
    snapshot = tmp_path / "hub" / "models--someone--tiny" / "snapshots" / "abc"
    snapshot.mkdir(parents=True)
    (snapshot / "config.json").write_text(json.dumps({**LLAMA, "tie_word_embeddings": True, "num_hidden_layers": 2}))
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    cached = find("someone/tiny")
    assert cached is not None
    # tied: one matrix of 525,336,576
    assert (cached.name, cached.num_params) == ("tiny", 2 * 218_112_000 + 525_336_576 + 4096)
    assert find("someone/else") is None


def test_a_mixture_and_a_nested_config(tmp_path: Path) -> None:
    file = tmp_path / "config.json"
    experts = {"num_experts": 128, "num_experts_per_tok": 8, "moe_intermediate_size": 768, "head_dim": 64}
    file.write_text(json.dumps({"text_config": {**LLAMA, **experts}}))
    shape = read(file)
    assert (shape.experts, shape.active_experts, shape.intermediate, shape.head_dim) == (128, 8, 768, 64)


def test_encoders(tmp_path: Path) -> None:
    """Check BERT base by hand, and that DistilBERT's names are known: half of its layers."""
    sizes = {"hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12, "intermediate_size": 3072}
    distilled = {"dim": 768, "n_layers": 6, "n_heads": 12, "hidden_dim": 3072}
    bert, distilbert = tmp_path / "bert.json", tmp_path / "distilbert.json"
    bert.write_text(json.dumps({"model_type": "bert", "vocab_size": 30522, **sizes}))
    distilbert.write_text(json.dumps({"model_type": "distilbert", "vocab_size": 30522, **distilled}))
    # q, k, v and o: 4 x 768²; two matrices of 768 x 3072; two norms
    assert read(bert).layer_params == read(distilbert).layer_params == 4 * 589_824 + 2 * 2_359_296 + 1_536
    assert (read(bert).layers, read(distilbert).layers) == (12, 6)


def test_missing_keys_of_a_config_are_named(tmp_path: Path) -> None:
    file = tmp_path / "config.json"
    file.write_text(json.dumps({"n_embd": 768, "vocab_size": 50257}))
    with pytest.raises(BadInput, match="missing: hidden_size, num_hidden_layers, num_attention_heads, intermediate"):
        read(file)
    file.write_text(json.dumps({**LLAMA, "kv_lora_rank": 512}))
    with pytest.raises(BadInput, match="compresses its keys and values"):
        read(file)
    file.write_text("{")
    with pytest.raises(BadInput, match="cannot be read"):
        read(file)


def test_adapters() -> None:
    shape = TABLE["llama-3-8b"]
    # r (in + out): q 8192, k and v 5120 each, o 8192, three of the MLP 18432 each: 81,920 per layer; 32 layers, r = 16
    assert shape.adapter_params(16, "all-linear") == 16 * 32 * 81_920
    assert shape.adapter_params(16, ("q_proj", "v_proj")) == 16 * 32 * (8192 + 5120)
