"""Adapters in a model, their files, and the base model under them as the reference."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from fakes import experience
from numpy.typing import NDArray
from peft import PeftModel
from torch import Tensor
from torch_engine import TorchEngine, learner_of
from transformers import AutoModelForCausalLM

from workers.config import LoraConfig
from workers.engines import hf_models, lora
from workers.learner import Learner
from workers.types import assemble

CONFIG = LoraConfig(r=4, lora_alpha=8)
SFT = {"type": "sft", "learning_rate": 0.01}
GROUPS = [([3, 4, 5], [[6, 7, 1]]), ([9, 10], [[5, 6, 7, 1]]), ([11], [[1]])]


def trained(model: Path, config: LoraConfig = CONFIG) -> tuple[Learner, TorchEngine]:
    """Return a learner after three updates of its adapters."""
    torch.manual_seed(0)
    learner, engine = learner_of(model, SFT, adapters=config)
    for step in range(3):
        learner.step(step, [experience(GROUPS)], None, None, None)
    return learner, engine


def by_transformers(model: Any) -> NDArray[np.float32]:
    """Compute the log-probabilities of the completions in GROUPS by one plain forward pass each."""
    parts = []
    for prompt, (completion,) in GROUPS:
        with torch.no_grad():
            logits = model(torch.tensor([prompt + completion])).logits[0, len(prompt) - 1 : -1]
        parts.append(logits.log_softmax(-1)[range(len(completion)), completion].numpy())
    return np.concatenate(parts)


def test_a_merged_weight_is_computed_by_hand() -> None:
    # W = [[1, 2]], A = [[3, 4]], B = [[5]], alpha / r = 2: W + 2 · 5 · [3, 4] = [31, 42]
    adapter = lora.Adapter(torch.nn.Parameter(torch.tensor([[3.0, 4.0]])), torch.nn.Parameter(torch.tensor([[5.0]])), 2)
    weight = torch.tensor([[1.0, 2.0]])
    assert adapter.merged(weight).tolist() == [[31.0, 42.0]]
    assert weight.tolist() == [[1.0, 2.0]]
    # 256 + 2 · 0.5 = 257 is not a number of bfloat16: it is rounded once, to even.
    small = lora.Adapter(torch.nn.Parameter(torch.tensor([[1.0]])), torch.nn.Parameter(torch.tensor([[0.5]])), 2)
    assert small.merged(torch.tensor([[256.0]], dtype=torch.bfloat16)).item() == 256.0


def test_only_adapters_are_trained_in_every_linear_layer_but_the_output(model: Path) -> None:
    module = hf_models.load_policy(str(model), "float32", chunk=64, lora=CONFIG)
    names = {name for name, p in module.named_parameters() if p.requires_grad}
    linear = ["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj"]
    linear += ["mlp.gate_proj", "mlp.up_proj", "mlp.down_proj"]
    assert names == {
        f"model.model.layers.{layer}.{name}.lora_{half}.default.weight"
        for layer in range(2)
        for name in linear
        for half in "AB"
    }


def test_only_the_named_layers_get_adapters(model: Path) -> None:
    config = LoraConfig(r=4, target_modules=("q_proj", "1.mlp.up_proj"))
    module = hf_models.load_policy(str(model), "float32", chunk=64, lora=config)
    assert list(lora.adapters(module.model)) == [
        "model.layers.0.self_attn.q_proj", "model.layers.1.self_attn.q_proj", "model.layers.1.mlp.up_proj",
    ]  # fmt: skip


@pytest.mark.parametrize("name", ["c_attn", "lm_head", "embed_tokens"])
def test_a_layer_that_is_not_there_is_named_with_those_that_are(model: Path, name: str) -> None:
    with pytest.raises(
        lora.LoraError, match=rf"`{name}` is not a linear layer .*: down_proj, gate_proj, k_proj, o_proj"
    ):
        hf_models.load_policy(str(model), "float32", chunk=64, lora=LoraConfig(target_modules=("q_proj", name)))


def test_initial_adapters_are_deterministic_and_have_no_effect(model: Path) -> None:
    def start(num_draws: int) -> dict[str, Tensor]:
        torch.manual_seed(5)
        torch.rand(num_draws)  # loading may draw random numbers, on some ranks only
        module = hf_models.load_policy(str(model), "float32", chunk=64, lora=CONFIG)
        return {n: a.down.detach() for n, a in lora.adapters(module.model).items()}

    first, second = start(0), start(7)
    assert all(torch.equal(first[name], second[name]) for name in first)
    learner, engine = learner_of(model, SFT, adapters=CONFIG)
    plain = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)
    found = assemble([learner.infer([experience(GROUPS)])], experience(GROUPS).completions)
    np.testing.assert_allclose(found, by_transformers(plain), atol=1e-5)
    for name, weight in engine.weights():
        assert torch.equal(weight, plain.get_parameter(name)), name


def test_the_base_is_unchanged_while_the_policy_trains(model: Path) -> None:
    given = experience(GROUPS)
    before = by_transformers(AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32))
    learner, engine = trained(model)
    base = assemble([learner.base_logprobs([given], 1.0, False)], given.completions)
    policy = assemble([learner.infer([given])], given.completions)
    np.testing.assert_allclose(base, before, atol=1e-5)
    assert np.abs(policy - before).max() > 0.1
    assert len(engine._trained()) == 2 * 14, "computing with the base has frozen no trained parameter"


def test_the_base_computes_each_row_of_a_dataset_once(qwen2: Path) -> None:
    learner, engine = trained(qwen2)
    given = experience(GROUPS)
    first = assemble([learner.base_logprobs([given], 1.0, True)], given.completions)
    num_forwards = len(engine.inferred)
    repeated = assemble([learner.base_logprobs([given], 1.0, True)], given.completions)
    assert len(engine.inferred) == num_forwards
    np.testing.assert_array_equal(first, repeated)
    learner.base_logprobs([given], 1.0, False)
    assert len(engine.inferred) == num_forwards + 1


def test_the_base_uses_the_temperature_of_the_loss(qwen2: Path) -> None:
    learner, _ = trained(qwen2)
    given = experience([([3], [[4]])])
    plain: Any = AutoModelForCausalLM.from_pretrained(qwen2, dtype=torch.float32)
    with torch.no_grad():
        expected = (plain(torch.tensor([[3]])).logits[0, 0] / 0.5).log_softmax(-1)[4]
    assert learner.base_logprobs([given], 0.5, False).values[0] == pytest.approx(float(expected), abs=1e-5)


@pytest.mark.parametrize("targets", ["all-linear", ("q_proj", "down_proj")])
def test_merged_model_and_adapter_are_the_learner(model: Path, targets: Any, tmp_path: Path) -> None:
    learner, _ = trained(model, LoraConfig(r=4, lora_alpha=8, target_modules=targets))
    given = experience(GROUPS)
    ours = assemble([learner.infer([given])], given.completions)
    learner.export(str(tmp_path / "model"))
    merged, loading = AutoModelForCausalLM.from_pretrained(
        tmp_path / "model", dtype=torch.float32, output_loading_info=True
    )
    assert not any(loading.values()), loading
    np.testing.assert_allclose(by_transformers(merged), ours, atol=1e-5)
    base = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)
    np.testing.assert_allclose(
        by_transformers(PeftModel.from_pretrained(base, tmp_path / "model" / "adapter")), ours, atol=1e-5
    )
    assert lora.written_version(tmp_path / "model" / "adapter") is None


def test_an_adapter_records_its_version(qwen2: Path, tmp_path: Path) -> None:
    learner, _ = trained(qwen2)
    learner.send_adapter(str(tmp_path / "a"), 7)
    assert lora.written_version(tmp_path / "a") == 7
    raw = bytearray((tmp_path / "a" / lora.WEIGHTS).read_bytes())
    raw[-1] ^= 1
    (tmp_path / "a" / lora.WEIGHTS).write_bytes(raw)
    with pytest.raises(lora.LoraError, match="is corrupt: its checksums do not match"):
        lora.written_version(tmp_path / "a")
    (tmp_path / "a" / "adapter_config.json").unlink()
    assert lora.written_version(tmp_path / "a") is None


def test_a_critic_trains_its_head_beside_its_adapters_and_keeps_both(qwen2: Path, tmp_path: Path) -> None:
    ppo = {"type": "ppo", "max_steps": 4, "critic_learning_rate": 0.01}
    critic, engine = learner_of(qwen2, ppo, head="values", adapters=CONFIG)
    names = [n for n, p in engine.module.named_parameters() if p.requires_grad]
    assert {n for n in names if "lora_" not in n} == {"value_head.weight", "value_head.bias"}
    given = experience(GROUPS, logprobs=[-1.0] * 8, rewards=[1.0, 0.0, 2.0])
    zeros = [critic.infer([given])]
    assert not zeros[0].values.any()
    for step in range(2):  # the head starts at zero, so the first update moves only the head
        critic.step(step, [given], None, zeros, zeros)
    assert all(a.up.detach().abs().max() > 0 for a in engine.adapters.values())
    critic.save(str(tmp_path / "critic"), {})
    other, _ = learner_of(qwen2, ppo, head="values", adapters=CONFIG)
    other.load(str(tmp_path / "critic"))
    np.testing.assert_array_equal(other.infer([given]).values, critic.infer([given]).values)


def test_dropout_depends_only_on_the_step(model: Path) -> None:
    """Check that a run resumed in another process draws the same dropout masks."""
    after = []
    for drawn_before in (0, 7):
        torch.manual_seed(0)
        learner, engine = learner_of(model, SFT, adapters=LoraConfig(r=4, lora_alpha=8, lora_dropout=0.5))
        engine.module.train()
        torch.rand(drawn_before)
        stats = [learner.step(step, [experience(GROUPS)], None, None, None).sums["loss"] for step in range(2)]
        after.append((stats, {name: tensor.clone() for name, tensor in engine.adapter()}))
    (losses, first), (repeated, second) = after
    assert losses == repeated
    assert all(torch.equal(first[name], second[name]) for name in first)
    engine.module.eval()
    whole, undropped = learner_of(model, SFT, adapters=CONFIG)
    undropped.module.train()
    assert losses != [whole.step(step, [experience(GROUPS)], None, None, None).sums["loss"] for step in range(2)]
