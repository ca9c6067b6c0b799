from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from fakes import experience
from transformers import AutoModelForCausalLM
from zero_gang import start_ranks

from configs.quickstart.tiny import character_tokenizer, create_model
from workers.config import ModelConfig, ReferenceConfig
from workers.engines.base import ModelError
from workers.reference import Reference
from workers.types import Drift, Experience, Floats, TokenShard, assemble

GROUPS = [([3, 4], [[5, 6, 1], [7, 1]]), ([8], [[9, 9, 9, 1]]), ([4, 4, 4], [[1], [10, 11, 1]])]
NUM_TOKENS = 13


def reference(model: Path, rank: int = 0, num_ranks: int = 1) -> Reference:
    config = ReferenceConfig(num_ranks=num_ranks, tokens_per_micro_batch=6)
    return Reference(
        ModelConfig(path=str(model), dtype="float32"), config, rank=rank, address="", port=0, cuda=False, chunk=4
    )


def by_hugging_face(model: Path, temperature: float) -> Floats:
    plain = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32, attn_implementation="eager")
    found = []
    with torch.no_grad():
        for prompt, group in GROUPS:
            for completion in group:
                logits = plain(torch.tensor([prompt + completion])).logits[0, len(prompt) - 1 : -1]
                found.append((logits / temperature).log_softmax(-1)[range(len(completion)), completion].numpy())
    return np.concatenate(found)


@pytest.mark.parametrize("temperature", [1.0, 0.5])
def test_two_ranks_together_are_hugging_face(model: Path, temperature: float) -> None:
    sampled = experience(GROUPS)
    shares = [reference(model, rank, num_ranks=2).logprobs([sampled], temperature) for rank in range(2)]
    assert all(len(s.completions) for s in shares)
    np.testing.assert_allclose(
        assemble(shares, sampled.completions), by_hugging_face(model, temperature), rtol=1e-5, atol=1e-5
    )


def test_a_refresh_replaces_the_model(qwen2: Path, tmp_path: Path) -> None:
    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = {"model_type": "qwen2", "num_key_value_heads": 1, **sizes}
    create_model(tmp_path, config, character_tokenizer("abcdefgh>"), seed=5)
    frozen, sampled = reference(qwen2), experience(GROUPS)
    frozen.load(str(tmp_path))
    after = assemble([frozen.logprobs([sampled])], sampled.completions)
    np.testing.assert_allclose(after, by_hugging_face(tmp_path, 1.0), rtol=1e-5, atol=1e-5)


def test_a_refresh_discards_cached_log_probabilities(qwen2: Path, tmp_path: Path) -> None:
    frozen, dataset = reference(qwen2), replace(experience(GROUPS), logprobs=None)
    before = assemble([frozen.logprobs([dataset])], dataset.completions)
    cached = assemble([frozen.logprobs([dataset])], dataset.completions)
    assert cached.tolist() == before.tolist()
    model = AutoModelForCausalLM.from_pretrained(qwen2)
    with torch.no_grad():
        model.get_input_embeddings().weight.mul_(2)
    for file in qwen2.iterdir():
        shutil.copy(file, tmp_path)
    model.save_pretrained(tmp_path)
    frozen.load(str(tmp_path))
    after = assemble([frozen.logprobs([dataset])], dataset.completions)
    np.testing.assert_allclose(after, by_hugging_face(tmp_path, 1.0), rtol=1e-5, atol=1e-5)
    assert not np.allclose(after, before, atol=1e-3)


# ------------------------------------------------------------------------------------------------ drift


def share(sampled: Experience, values: list[float]) -> TokenShard:
    return TokenShard(completions=np.arange(len(sampled.completions)), values=np.array(values, np.float32))


def test_drift_by_hand(qwen2: Path) -> None:
    # Log-ratios: 0.5 + 0.5 = 1, −1, 12; mean 4; deviations −3 −5 8, variance 98/3; one of three beyond 10.
    sampled = experience([([3], [[4, 1], [1]]), ([3], [[1]])], logprobs=[-1, -2, -3, -1])
    drift = reference(qwen2).drift([sampled], [share(sampled, [-1.5, -2.5, -2, -13])])
    assert (drift.kl, drift.num_completions) == (4.0, 3)
    assert drift.spread == pytest.approx((98 / 3) ** 0.5)
    # Means of the two prompts: 0 and 12; deviation 6 √2; standard error 6.
    assert drift.kl_error == pytest.approx(6)
    assert drift.interval == pytest.approx((4 - 1.96 * 6, 4 + 1.96 * 6))
    assert drift.saturated == pytest.approx(1 / 3)


def test_a_reference_equal_to_the_policy_has_no_drift(qwen2: Path) -> None:
    sampled = experience(GROUPS, logprobs=[-1.25] * NUM_TOKENS)
    drift = reference(qwen2).drift([sampled], [share(sampled, [-1.25] * NUM_TOKENS)])
    assert drift == Drift(kl=0.0, kl_error=0.0, spread=0.0, saturated=0.0, num_completions=5)


def test_a_dataset_has_no_drift(qwen2: Path) -> None:
    with pytest.raises(ValueError, match="log-ratios need sampled completions"):
        reference(qwen2).drift([experience(GROUPS)], [])


def test_a_reference_of_another_tokenizer_is_refused_before_it_is_loaded(model: Path, tmp_path: Path) -> None:
    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    create_model(tmp_path, {"model_type": "llama", **sizes}, character_tokenizer("abxdefgh>:"), seed=0)
    (tmp_path / "model.safetensors").unlink()
    origin, policy = (ModelConfig(path=str(path), dtype="float32") for path in (tmp_path, model))
    with pytest.raises(ModelError, match=r"reference.path .* has another tokenizer than model"):
        Reference(origin, ReferenceConfig(), rank=0, address="", port=0, cuda=False, chunk=4, policy=policy)


# ------------------------------------------------------------------------------------------------ memory


@pytest.mark.stack
def test_refreshes_of_a_partitioned_reference_take_no_more_memory(tmp_path: Path) -> None:
    """Load a model of 20 MB six times. References of ZeRO's hooks once kept the first five in memory."""
    sizes = {"hidden_size": 256, "intermediate_size": 1024, "num_hidden_layers": 5, "num_attention_heads": 4}
    config = {"model_type": "llama", **sizes}
    for seed in (5, 6):
        create_model(tmp_path / str(seed), config, character_tokenizer("abcdefgh>"), seed=seed)
    start_ranks("refresh_rank.py", 1, [str(tmp_path / "results.json"), str(tmp_path / "5"), str(tmp_path / "6")])
    results = json.loads((tmp_path / "results.json").read_text())
    assert results["stage-3"]["tensors"] == [results["stage-3"]["tensors"][0]] * 6
    assert results["stage-0"]["tensors"] == [results["stage-0"]["tensors"][0]] * 6
    for stage in ("stage-3", "stage-0"):
        np.testing.assert_allclose(results[stage]["last"], by_hugging_face(tmp_path / "6", 1.0), rtol=1e-5, atol=1e-5)
