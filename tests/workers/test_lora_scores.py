"""Adapters in a reward model: training, files, and loading them again."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from fakes import experience
from peft import AutoPeftModelForSequenceClassification, PeftModelForSequenceClassification
from safetensors.torch import load_file
from torch_engine import TorchEngine, learner_of
from transformers import AutoModel, AutoModelForSequenceClassification

from workers.config import LoraConfig, ModelRewardConfig, PpoConfig
from workers.learner import Learner
from workers.packing import Packed, pack
from workers.rewards import build
from workers.rewards.base import Completed
from workers.stats import merge_stats
from workers.types import Experience, Prompt

CONFIG = LoraConfig(r=4, lora_alpha=8)
PAIRS = [
    ([3, 4, 5], [[6, 7, 1], [8, 1]]),
    ([11], [[3, 4, 5, 6, 7, 8, 1], [4, 1]]),
    ([4, 5, 6, 7, 8], [[5, 1], [6, 6, 1]]),
]
TEXTS = [prompt + completion for prompt, group in PAIRS for completion in group]
SETTINGS = {"type": "reward_model", "learning_rate": 1e-2, "adam_epsilon": 1e-5}
LINEAR = [f"self_attn.{name}_proj" for name in "qkvo"] + [f"mlp.{name}_proj" for name in ("gate", "up", "down")]


def pairs() -> Experience:
    return experience(PAIRS, rewards=[1.0, 0.0] * 3)


def start(model: Path, config: LoraConfig | None = CONFIG) -> tuple[Learner, TorchEngine]:
    torch.manual_seed(0)
    return learner_of(model, SETTINGS, head="scores", draw=4, adapters=config)


def trained(model: Path, config: LoraConfig = CONFIG, steps: int = 3) -> tuple[Learner, TorchEngine]:
    learner, engine = start(model, config)
    for step in range(steps):
        learner.step(step, [pairs()], None, None, None)
    return learner, engine


def packed_texts() -> Packed:
    given = pairs()
    return pack(given.prompt_tokens, given.completions, given.group_offsets, np.arange(3), pad=-1)


def scores(engine: TorchEngine, *, adapted: bool = True) -> list[float]:
    """Return the scores of the texts, read at their last token."""
    ends = np.cumsum(pairs().completions.lengths) - 1
    return engine.infer(packed_texts(), adapted=adapted)[ends].tolist()


def by_transformers(model: Any) -> list[float]:
    with torch.no_grad():
        return [model(torch.tensor([text])).logits[0, 0].item() for text in TEXTS]


def classifier(directory: Path, **changes: Any) -> Any:
    return AutoModelForSequenceClassification.from_pretrained(directory, dtype=torch.float32, **changes)


@pytest.fixture
def judge(model: Path, tmp_path: Path) -> Path:
    """Return a reward model that was trained without adapters."""
    learner, _ = start(model, None)
    learner.step(0, [pairs()], None, None, None)
    learner.export(str(tmp_path / "judge"))
    return tmp_path / "judge"


# ------------------------------------------------------------------------------------------------ training


def assert_trains_adapters_and_score(engine: TorchEngine) -> None:
    adapters = {f"layers.{i}.{name}.lora_{half}.default.weight" for i in (0, 1) for name in LINEAR for half in "AB"}
    named = {name for name, p in engine.module.named_parameters() if p.requires_grad}
    assert named == {f"model.{name}" for name in adapters} | {"score.weight"}


def test_adapters_in_every_linear_layer_and_the_score_layer_are_trained(model: Path) -> None:
    assert_trains_adapters_and_score(start(model)[1])


def test_adapters_are_also_trained_in_an_existing_reward_model(judge: Path) -> None:
    learner, engine = start(judge)
    assert_trains_adapters_and_score(engine)
    assert scores(engine) == pytest.approx(by_transformers(classifier(judge)), abs=1e-5)
    for step in range(3):
        learner.step(step, [pairs()], None, None, None)
    learner.export(str(judge.parent / "again"))
    assert by_transformers(classifier(judge.parent / "again")) == pytest.approx(scores(engine), abs=1e-5)
    adapter = PeftModelForSequenceClassification.from_pretrained(classifier(judge), judge.parent / "again" / "adapter")
    assert by_transformers(adapter) == pytest.approx(scores(engine), abs=1e-5)


def test_initial_scores_equal_those_without_adapters(model: Path) -> None:
    assert scores(start(model)[1]) == scores(start(model, None)[1])


def test_training_separates_chosen_from_rejected(model: Path) -> None:
    learner, engine = start(model)
    metrics = [merge_stats([learner.step(i, [pairs()], None, None, None)]) for i in range(12)]
    assert metrics[-1]["loss"] < 0.1 < 0.2 < metrics[0]["loss"]
    assert metrics[-1]["accuracy"] == 1
    assert all(adapter.up.abs().max() > 0 for adapter in engine.adapters.values())


def test_disabled_adapters_leave_the_base_and_the_trained_score_layer(model: Path) -> None:
    _, engine = trained(model)
    base = AutoModel.from_pretrained(model, dtype=torch.float32)
    last = [base(torch.tensor([text])).last_hidden_state[0, -1].detach() for text in TEXTS]
    expected = [(engine.module.score.weight.detach()[0] @ state).item() for state in last]
    assert scores(engine, adapted=False) == pytest.approx(expected, abs=1e-5)
    assert np.abs(np.subtract(scores(engine), expected)).max() > 0.1


# ------------------------------------------------------------------------------------------------ export


@pytest.mark.parametrize("targets", ["all-linear", ("q_proj", "down_proj")])
def test_transformers_loads_the_merged_model_and_peft_the_adapter(model: Path, targets: Any, tmp_path: Path) -> None:
    learner, engine = trained(model, LoraConfig(r=4, lora_alpha=8, target_modules=targets))
    learner.export(str(tmp_path / "out"))
    merged, loading = AutoModelForSequenceClassification.from_pretrained(
        tmp_path / "out", dtype=torch.float32, output_loading_info=True
    )
    assert not any(loading.values()), loading
    weights = dict(engine.weights())
    theirs = dict(merged.named_parameters())
    assert sorted(theirs) == sorted(weights)
    assert all(torch.equal(theirs[name], weight) for name, weight in weights.items())
    assert by_transformers(merged) == pytest.approx(scores(engine), abs=1e-5)
    adapter = PeftModelForSequenceClassification.from_pretrained(
        classifier(model, num_labels=1), tmp_path / "out" / "adapter"
    )
    assert by_transformers(adapter) == pytest.approx(scores(engine), abs=1e-5)
    for name, weight in adapter.merge_and_unload().named_parameters():
        torch.testing.assert_close(weight, weights[name], atol=1e-6, rtol=0, msg=name)


def test_the_adapter_is_one_of_peft_s_for_sequence_classification(model: Path, tmp_path: Path) -> None:
    learner, engine = trained(model)
    learner.export(str(tmp_path))
    settings = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
    assert (settings["task_type"], settings["modules_to_save"]) == ("SEQ_CLS", ["score"])
    assert sorted(settings["target_modules"]) == sorted(name.rpartition(".")[2] for name in LINEAR)
    stored = load_file(tmp_path / "adapter" / "adapter_model.safetensors")
    assert torch.equal(stored.pop("base_model.model.score.weight"), engine.module.score.weight)
    prefix = "base_model.model.model.layers"
    assert sorted(stored) == sorted(
        f"{prefix}.{i}.{n}.lora_{half}.weight" for i in (0, 1) for n in LINEAR for half in "AB"
    )
    loaded = AutoPeftModelForSequenceClassification.from_pretrained(tmp_path / "adapter", num_labels=1)
    assert by_transformers(loaded) == pytest.approx(scores(engine), abs=1e-5)


def test_another_learner_resumes_from_the_checkpoint(model: Path, tmp_path: Path) -> None:
    learner, engine = trained(model, steps=2)
    learner.save(str(tmp_path / "checkpoint"), {"step": 2})
    resumed, other = start(model)
    assert resumed.load(str(tmp_path / "checkpoint")) == {"step": 2}
    for each in (learner, resumed):
        each.step(2, [pairs()], None, None, None)
    assert scores(other) == scores(engine)


# -------------------------------------------------------------------------------------------- use of the exported model


def test_the_exported_model_serves_as_a_reward(qwen2: Path, tmp_path: Path) -> None:
    learner, engine = trained(qwen2)
    learner.export(str(tmp_path / "judge" / "model"))
    scorer = build(ModelRewardConfig(type="model", path=str(tmp_path / "judge" / "model"), dtype="float32"))
    prompt = Prompt(id="0", text="abc")  # 3, 4, 5; the completions are d, e and f
    given = Completed(prompts=[prompt, prompt], completions=["de", "f"], completion_ids=[[0], [0]])
    assert scorer.score(given).tolist() == pytest.approx(scores(engine)[:2], abs=1e-5)


def test_a_critic_with_adapters_starts_from_the_exported_model(model: Path, tmp_path: Path) -> None:
    trained(model)[0].export(str(tmp_path / "judge"))
    critic = TorchEngine(tmp_path / "judge", PpoConfig(type="ppo"), head="values", adapters=CONFIG)
    named = {name for name, p in critic.module.named_parameters() if p.requires_grad}
    assert {name for name in named if "lora_" not in name} == {"value_head.weight"}
    given = pairs()
    packed = pack(given.prompt_tokens, given.completions, given.group_offsets, np.array([0]))
    prefixes = [[3, 4, 5], [3, 4, 5, 6], [3, 4, 5, 6, 7], [3, 4, 5], [3, 4, 5, 8]]
    reader = classifier(tmp_path / "judge")
    expected = [reader(torch.tensor([text])).logits[0, 0].item() for text in prefixes]
    assert critic.infer(packed).tolist() == pytest.approx(expected, abs=1e-5)
