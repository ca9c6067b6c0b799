"""Adapters under every ZeRO stage train like a plain torch loop over peft's parameters; the base is unchanged."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from fakes import experience
from peft import PeftModel
from safetensors.torch import load_file
from torch import Tensor
from torch_engine import learner_of
from transformers import AutoModelForCausalLM
from zero_gang import run_ranks
from zero_rank import ALGORITHM, BATCHES, FRESH, PAIRS, REWARD_MODEL

from workers.config import LoraConfig

pytestmark = pytest.mark.stack

LORA = {"r": 4, "lora_alpha": 8}
SETTINGS: dict[str, tuple[int, dict[str, Any]]] = {
    "one-rank": (1, {}),
    "one-rank-stage-0": (1, {"zero_stage": 0}),
    "two-ranks": (2, {"tokens_per_micro_batch": 6, "param_persistence_threshold": 0}),
    "checkpointed-activations": (2, {"gradient_checkpointing": True, "param_persistence_threshold": 0}),
    "stage-0": (2, {"zero_stage": 0}),
    "stage-1": (2, {"zero_stage": 1}),
    "stage-2": (2, {"zero_stage": 2, "tokens_per_micro_batch": 6}),
}
REWARD_MODELS: dict[str, tuple[int, dict[str, Any]]] = {
    "reward-model-on-one-rank": (1, {}),
    "reward-model-partitioned": (2, {"tokens_per_micro_batch": 12, "param_persistence_threshold": 0}),
    "reward-model-stage-0": (2, {"zero_stage": 0}),
    "reward-model-stage-1": (2, {"zero_stage": 1}),
    "reward-model-stage-2": (2, {"zero_stage": 2}),
}


@pytest.fixture(scope="module")
def out(qwen2: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("zero-lora")
    for world_size in (1, 2):
        settings = {
            n: (str(qwen2), {**f, "lora": LORA})
            for n, (size, f) in (SETTINGS | REWARD_MODELS).items()
            if size == world_size
        }
        run_ranks(world_size, settings, directory)
    return directory


@dataclass(frozen=True)
class Plain:
    """Result of the same updates in plain torch."""

    adapter: dict[str, Tensor]  # at the end, by peft's name
    merged: dict[str, Tensor]  # before the fresh optimizer, by the model's
    norms: list[float]
    losses: list[float]


@pytest.fixture(scope="module")
def plain(out: Path, qwen2: Path) -> Plain:
    base = AutoModelForCausalLM.from_pretrained(qwen2, dtype=torch.float32, attn_implementation="eager")
    model: Any = PeftModel.from_pretrained(base, out / "one-rank-start", is_trainable=True)
    trained = [p for p in model.parameters() if p.requires_grad]
    norms, losses, merged = [], [], {}
    for step, rows in enumerate(BATCHES):
        if step in (0, FRESH):
            optimizer = torch.optim.AdamW(trained, eps=ALGORITHM.adam_epsilon, weight_decay=ALGORITHM.weight_decay)
        logprobs = [
            model(torch.tensor([prompt + completion]))
            .logits[0, len(prompt) - 1 : -1]
            .log_softmax(-1)[range(len(completion)), completion]
            for prompt, (completion,) in rows
        ]
        loss = -torch.cat(logprobs).mean()
        optimizer.zero_grad()
        loss.backward()
        losses.append(loss.item())
        norms.append(float(torch.nn.utils.clip_grad_norm_(trained, ALGORITHM.max_grad_norm)))
        optimizer.param_groups[0]["lr"] = ALGORITHM.learning_rate * (1 - step / len(BATCHES))
        optimizer.step()
        if step == FRESH - 1:
            model.merge_adapter()
            named = model.base_model.model.named_parameters(remove_duplicate=False)
            merged = {n.replace(".base_layer", ""): p.detach().clone() for n, p in named if "lora_" not in n}
            model.unmerge_adapter()
    adapter = {n.replace(".default", ""): p.detach().clone() for n, p in model.named_parameters() if p.requires_grad}
    return Plain(adapter, merged, norms, losses)


def assert_same(ours: dict[str, Tensor], theirs: dict[str, Tensor]) -> None:
    assert sorted(ours) == sorted(theirs)
    for name, weight in theirs.items():
        torch.testing.assert_close(ours[name], weight, atol=1e-5, rtol=0, msg=name)


@pytest.mark.parametrize("name", SETTINGS)
def test_adapters_are_those_of_plain_torch(name: str, out: Path, plain: Plain) -> None:
    started = load_file(out / f"{name}-start" / "adapter_model.safetensors")
    ended = load_file(out / f"{name}-adapter" / "adapter_model.safetensors")
    assert_same(ended, plain.adapter)
    assert all((ended[n] - started[n]).abs().max() > 1e-4 for n in ended), "every adapter was trained"


@pytest.mark.parametrize("name", SETTINGS)
def test_what_is_published_is_the_merged_model(name: str, out: Path, plain: Plain) -> None:
    assert_same(load_file(out / f"{name}.safetensors"), plain.merged)


@pytest.mark.parametrize("name", SETTINGS)
def test_the_base_is_untouched_to_the_bit(name: str, out: Path, qwen2: Path) -> None:
    before = AutoModelForCausalLM.from_pretrained(qwen2, dtype=torch.float32)
    after = load_file(out / f"{name}-base.safetensors")
    for parameter, weight in before.named_parameters():
        assert torch.equal(after[parameter], weight), parameter


@pytest.mark.parametrize("name", SETTINGS)
def test_norms_losses_and_checkpoint(name: str, out: Path, plain: Plain) -> None:
    results = json.loads((out / f"{name}.json").read_text())
    assert results["grad_norms"] == pytest.approx(plain.norms, rel=1e-4)
    assert results["losses"] == pytest.approx(plain.losses, rel=1e-5)
    assert results["resumed_to_the_bit"]
    assert results["sent"] == results["described"]


@pytest.mark.parametrize("name", SETTINGS)
def test_a_critic_keeps_its_adapters_and_its_whole_head(name: str, out: Path) -> None:
    results = json.loads((out / f"{name}.json").read_text())
    assert results["critic_adapters_learned"]
    assert results["critic_resumed_to_the_bit"]


@pytest.mark.parametrize("name", SETTINGS)
def test_a_checkpoint_holds_no_base(name: str, out: Path) -> None:
    """Check that checkpoints do not contain the frozen base, which is at model.path."""
    states = torch.load(_first(out / f"{name}-checkpoint"), weights_only=False)
    # A tied output layer is saved: DeepSpeed recognises a frozen weight only by its first name.
    assert [n for n in states["module"] if "lora_" not in n and n != "model.lm_head.weight"] == []
    assert not states.get("frozen_param_fragments")


@pytest.mark.parametrize("name", REWARD_MODELS)
def test_a_reward_model_with_adapters_is_that_of_plain_torch(name: str, out: Path, qwen2: Path) -> None:
    torch.manual_seed(4)  # like the ranks: it initialises the adapters
    recipe = REWARD_MODEL.model_dump()
    learner, engine = learner_of(
        qwen2, recipe, head="scores", max_steps=len(PAIRS), draw=4, adapters=LoraConfig(**LORA)
    )
    rewards = [experience(rows, rewards=[1.0, 0.0] * len(rows)) for rows in PAIRS]
    losses = [learner.step(i, [given], None, None, None).sums["loss"] for i, given in enumerate(rewards)]
    results = json.loads((out / f"{name}.json").read_text())
    assert results["losses"] == pytest.approx(losses, rel=1e-4)
    assert results["resumed_to_the_bit"]
    assert results["loaded_to_the_bit"]
    assert_same(load_file(out / f"{name}.safetensors"), dict(engine.weights()))
    adapter = dict(engine.adapter())
    assert_same(load_file(out / f"{name}-model" / "adapter" / "adapter_model.safetensors"), adapter)
    assert all(tensor.any() for tensor in adapter.values()), "every adapter was trained"


@pytest.mark.parametrize("name", REWARD_MODELS)
def test_the_checkpoint_of_a_reward_model_holds_only_adapters_and_score_layer(name: str, out: Path) -> None:
    states = torch.load(_first(out / f"{name}-checkpoint"), weights_only=False)
    assert [n for n in states["module"] if "lora_" not in n] == ["score.weight"]
    assert not states.get("frozen_param_fragments")


def _first(checkpoint: Path) -> Path:
    return min(checkpoint.glob("state/*model_states.pt"))
