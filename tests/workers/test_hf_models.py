"""Models as Hugging Face directories: loading, export, and refusals; learning-rate schedules."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer

from configs.quickstart.tiny import character_tokenizer, create_model
from tests.families.rows import forward_alone, forward_packed, packed
from workers.engines.base import ModelError
from workers.engines.hf_files import export, weight_names
from workers.engines.hf_models import load_policy, schedule

# ------------------------------------------------------------------------------------------------ schedule


@pytest.mark.parametrize(
    ("name", "warmup", "factors"),
    [
        ("constant", 0, [1, 1, 1, 1, 1, 1]),
        ("constant", 4, [1 / 4, 2 / 4, 3 / 4, 1, 1, 1]),
        ("linear", 0, [6 / 6, 5 / 6, 4 / 6, 3 / 6, 2 / 6, 1 / 6]),
        ("linear", 2, [1 / 2, 1, 4 / 5, 3 / 5, 2 / 5, 1 / 5]),
        ("linear", 0.5, [1 / 3, 2 / 3, 1, 3 / 4, 2 / 4, 1 / 4]),
        ("cosine", 0, [(1 + math.cos(math.pi * i / 6)) / 2 for i in range(6)]),
        ("cosine", 1, [1, *((1 + math.cos(math.pi * i / 6)) / 2 for i in range(1, 6))]),
    ],
)
def test_schedule(name: str, warmup: float, factors: list[float]) -> None:
    factor = schedule(name, warmup=warmup, total=6)
    assert [factor(update) for update in range(6)] == pytest.approx(factors)


# ------------------------------------------------------------------------------------------------ directories


def changed_weights(model: Path) -> tuple[list[tuple[str, torch.dtype, tuple[int, ...]]], dict[str, Tensor]]:
    """Return description and weights of the policy after a change of all weights."""
    policy = load_policy(str(model), "float32", chunk=64)
    with torch.no_grad():
        for i, parameter in enumerate(policy.parameters()):
            parameter += 0.01 * (i + 1)
    weights = {name: p.detach() for name, p in weight_names(policy).items()}
    return [(name, w.dtype, tuple(w.shape)) for name, w in weights.items()], weights


def assert_loads_as(directory: Path, weights: dict[str, Tensor]) -> None:
    loaded: Any = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32)
    found = dict(loaded.named_parameters(remove_duplicate=False))
    assert list(found) == list(weights)
    for name, weight in weights.items():
        assert torch.equal(found[name], weight), name


def test_export_and_load_again(model: Path, tmp_path: Path) -> None:
    described, weights = changed_weights(model)
    export(str(model), described, iter(weights.items()), tmp_path / "out")
    assert_loads_as(tmp_path / "out", weights)
    names = {p.name for p in (tmp_path / "out").iterdir()}
    assert {"config.json", "tokenizer.json", "model.safetensors"} <= names
    assert json.loads((tmp_path / "out/config.json").read_text())["dtype"] == "float32"
    # transformers writes a generation config only if it differs from the default.
    assert ("generation_config.json" in names) == (model / "generation_config.json").exists()
    before, after = AutoTokenizer.from_pretrained(model), AutoTokenizer.from_pretrained(tmp_path / "out")
    assert after("what is ab>")["input_ids"] == before("what is ab>")["input_ids"]
    assert after.chat_template == before.chat_template


def test_a_large_model_is_written_in_shards(model: Path, tmp_path: Path) -> None:
    described, weights = changed_weights(model)
    export(str(model), described, iter(weights.items()), tmp_path, shard_bytes=20_000)
    index = json.loads((tmp_path / "model.safetensors.index.json").read_text())
    shards = sorted(p.name for p in tmp_path.glob("model-*.safetensors"))
    assert len(shards) > 2
    assert sorted(set(index["weight_map"].values())) == shards
    assert_loads_as(tmp_path, weights)


def test_a_tied_head_is_stored_once_and_comes_back(qwen2: Path, llama: Path, tmp_path: Path) -> None:
    for path, stored in ((qwen2, False), (llama, True)):
        described, weights = changed_weights(path)
        assert "lm_head.weight" in weights
        export(str(path), described, iter(weights.items()), tmp_path / path.name, shard_bytes=20_000)
        index = json.loads((tmp_path / path.name / "model.safetensors.index.json").read_text())
        assert ("lm_head.weight" in index["weight_map"]) == stored


def test_models_whose_logits_are_scaled_are_right(tmp_path: Path) -> None:
    sizes = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1}
    config = {"model_type": "granite", "num_key_value_heads": 1, "logits_scaling": 2.0, **sizes}
    create_model(tmp_path, config, character_tokenizer("ab"), seed=0)
    policy = load_policy(str(tmp_path), "float32", chunk=8)
    rows = [(np.asarray([3]), [np.asarray([4, 3, 3])])]
    found, _ = forward_packed(policy, packed(rows))
    expected, _ = forward_alone(AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32), rows)
    torch.testing.assert_close(found, expected)


def test_weights_that_are_quantised_are_refused(llama: Path, tmp_path: Path) -> None:
    shutil.copytree(llama, tmp_path, dirs_exist_ok=True)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, "quantization_config": {"quant_method": "fp8"}}))
    with pytest.raises(ModelError, match="its weights are quantised"):
        load_policy(str(tmp_path), "float32", chunk=8)


def test_a_model_whose_files_lack_a_weight_is_refused(llama: Path, tmp_path: Path) -> None:
    shutil.copytree(llama, tmp_path, dirs_exist_ok=True)
    weights = load_file(tmp_path / "model.safetensors")
    del weights["model.layers.0.mlp.up_proj.weight"]
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ModelError, match=r"lack weights of LlamaForCausalLM \(1, as model\.layers\.0\.mlp\.up_proj"):
        load_policy(str(tmp_path), "float32", chunk=8)
