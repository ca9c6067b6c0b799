"""Reward model as a scorer, compared with transformers, and a critic that is initialised from it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from fakes import experience
from torch_engine import TorchEngine, learner_of
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from workers.config import ModelConfig, ModelRewardConfig, PpoConfig, RewardConfig
from workers.packing import pack
from workers.reward import Reward
from workers.rewards import build
from workers.rewards.base import Completed, RewardError
from workers.types import Prompt, Text

PAIRS = [([3, 4, 5], [[6, 7, 1], [8, 1]]), ([11], [[3, 4, 5, 6, 7, 8, 1], [4, 1]])]


def exported(model: Path, directory: Path) -> Path:
    """Train a reward model from `model` for one step and export it."""
    recipe = {"type": "reward_model", "learning_rate": 1e-2, "adam_epsilon": 1e-5}
    learner, _ = learner_of(model, recipe, head="scores")
    learner.step(0, [experience(PAIRS, rewards=[1.0, 0.0] * 2)], None, None, None)
    learner.export(str(directory))
    return directory


@pytest.fixture(scope="module")
def letters_model(qwen2: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return exported(qwen2, tmp_path_factory.mktemp("judge") / "model")


@pytest.fixture(scope="module")
def chat_model(llama: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return exported(llama, tmp_path_factory.mktemp("rewards") / "talk")


def settings(path: Path, **changes: Any) -> ModelRewardConfig:
    return ModelRewardConfig(type="model", path=str(path), dtype="float32", **changes)


def completed(*pairs: tuple[Prompt, Text]) -> Completed:
    return Completed(
        prompts=[prompt for prompt, _ in pairs],
        completions=[text for _, text in pairs],
        completion_ids=[[0]] * len(pairs),
    )


def prompt(text: Text) -> Prompt:
    return Prompt(id=str(text), text=text)


def hugging_face(path: Path, tokens: list[list[int]]) -> list[float]:
    model: Any = AutoModelForSequenceClassification.from_pretrained(path, dtype=torch.float32)
    return [model(torch.tensor([t])).logits[0, 0].item() for t in tokens]


@pytest.mark.parametrize("budget", [16384, 8])
def test_scores_are_those_of_transformers(letters_model: Path, budget: int) -> None:
    one, two = prompt("ab>"), prompt("h>")
    given = completed((one, "ba"), (one, "abcdef"), (two, "a"), (one, ""))
    scorer = build(settings(letters_model, tokens_per_micro_batch=budget))
    tokens = [[3, 4, 11, 4, 3, 1], [3, 4, 11, 3, 4, 5, 6, 7, 8, 1], [10, 11, 3, 1], [3, 4, 11, 1]]
    scores = scorer.score(given)
    assert scores.tolist() == pytest.approx(hugging_face(letters_model, tokens), abs=1e-5)
    assert np.std(scores) > 0.05
    assert scorer.name.startswith("judge")  # a run's `model` directory is called by the run


def test_conversations_go_through_its_own_template(chat_model: Path) -> None:
    question, answer = {"role": "user", "content": "what"}, {"role": "assistant", "content": "four"}
    scorer = build(settings(chat_model))
    scores = scorer.score(completed((prompt([question]), [answer])))
    tokenizer: Any = AutoTokenizer.from_pretrained(chat_model)
    tokens = tokenizer("<|user|>what</s><|assistant|>four</s>", add_special_tokens=False)["input_ids"]
    assert scores.tolist() == pytest.approx(hugging_face(chat_model, [tokens]), abs=1e-5)
    assert scorer.name == "talk"


def test_a_prompt_that_is_too_long_gets_no_score(letters_model: Path) -> None:
    short, long = prompt("ab>"), prompt("abcdef>")
    scorer = build(settings(letters_model, max_length=6))
    scores = scorer.score(completed((long, "a"), (short, "a"), (long, "b"), (long, "c"), (short, "bcdefgh")))
    assert np.isnan(scores).tolist() == [True, False, True, True, False]
    assert scores[[1, 4]].tolist() == pytest.approx(
        hugging_face(letters_model, [[3, 4, 11, 3, 1], [3, 4, 11, 4, 5, 6]]), abs=1e-5
    )
    assert np.isnan(scorer.score(completed((long, "a")))).all()


@pytest.mark.parametrize("pad", [None, 1])
def test_the_config_of_the_reward_model_defines_the_padding(
    letters_model: Path, tmp_path: Path, pad: int | None
) -> None:
    # Whatever its tokenizer pads with: transformers scores at the last token, or at the one before the end (1).
    shutil.copytree(letters_model, tmp_path / "judge")
    config = json.loads((tmp_path / "judge" / "config.json").read_text())
    (tmp_path / "judge" / "config.json").write_text(json.dumps(config | {"pad_token_id": pad}))
    scores = build(settings(tmp_path / "judge")).score(completed((prompt("ab>"), "ba")))
    assert scores.tolist() == pytest.approx(hugging_face(tmp_path / "judge", [[3, 4, 11, 4, 3, 1]]), abs=1e-5)
    at = [3, 4, 11, 4, 3, 1] if pad is None else [3, 4, 11, 4, 3]
    assert scores.tolist() == pytest.approx(hugging_face(letters_model, [at]), abs=1e-5)
    learner, _ = learner_of(tmp_path / "judge", {"type": "reward_model"}, head="scores")
    learner.export(str(tmp_path / "again"))
    assert json.loads((tmp_path / "again" / "config.json").read_text()).get("pad_token_id") == pad


def test_a_language_model_is_refused(qwen2: Path) -> None:
    with pytest.raises(RewardError, match="is not a reward model"):
        build(settings(qwen2))


def test_the_policy_may_have_another_tokenizer(qwen2: Path, chat_model: Path) -> None:
    # The policy reads letters (a 3, b 4, > 11), the reward model the BPE of another family.
    sampled = experience([([11], [[3, 4, 1], [4, 1]])], prompts=(prompt("it is"),))
    config: RewardConfig = settings(chat_model, weight=2.0)
    worker = Reward(ModelConfig(path=str(qwen2)), [config], index=0, num_workers=1, num_samples=0)
    scores = worker.score([sampled])
    tokenizer: Any = AutoTokenizer.from_pretrained(chat_model)
    texts = [[t for part in ("it is", text) for t in tokenizer(part)["input_ids"]] + [1] for text in ("ab", "b")]
    assert scores.by_scorer["talk"].tolist() == pytest.approx(hugging_face(chat_model, texts), abs=1e-5)
    assert scores.rewards.tolist() == pytest.approx((2 * scores.by_scorer["talk"]).tolist())


# ------------------------------------------------------------------------------------------------ a critic from it


def test_a_critic_starts_from_the_reward_model(letters_model: Path) -> None:
    """Check that the value before a token is the reward model's score of the text so far."""
    critic = TorchEngine(letters_model, PpoConfig(type="ppo"), head="values")
    given = experience([([3, 4, 5], [[6, 7, 1]])])
    packed = pack(given.prompt_tokens, given.completions, given.group_offsets, np.array([0]))
    prefixes = [[3, 4, 5], [3, 4, 5, 6], [3, 4, 5, 6, 7]]
    assert critic.infer(packed).tolist() == pytest.approx(hugging_face(letters_model, prefixes), abs=1e-5)


def test_a_critic_of_a_language_model_starts_at_zero(qwen2: Path) -> None:
    critic = TorchEngine(qwen2, PpoConfig(type="ppo"), head="values")
    given = experience([([3, 4, 5], [[6, 7, 1]])])
    packed = pack(given.prompt_tokens, given.completions, given.group_offsets, np.array([0]))
    assert critic.infer(packed).tolist() == [0, 0, 0]
