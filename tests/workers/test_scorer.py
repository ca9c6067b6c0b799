"""Reward models: training, and equal scores after loading with transformers."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from fakes import experience
from torch_engine import TorchEngine, learner_of
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from workers.engines.base import ModelError
from workers.engines.hf_models import load_score, load_scorer, padding_token
from workers.learner import Learner
from workers.margins import merge_margins
from workers.stats import merge_stats
from workers.types import Experience, Prompt

# The Llama of these tests has <s> 0, </s> 1, <pad> 2; the Qwen2 <pad> 0, <eos> 1: neither pads with its end.
PAIRS = [
    ([3, 4, 5], [[6, 7, 1], [8, 1]]),
    ([11], [[3, 4, 5, 6, 7, 8, 1], [4, 1]]),
    ([4, 5, 6, 7, 8], [[5, 1], [6, 6, 1]]),
]
SETTINGS = {"type": "reward_model", "learning_rate": 1e-2, "adam_epsilon": 1e-5}


def pairs() -> Experience:
    return experience(PAIRS, rewards=[1.0, 0.0] * 3)


def train(model: Path, steps: int, **settings: Any) -> tuple[Learner, TorchEngine, list[dict[str, float]]]:
    learner, engine = learner_of(model, SETTINGS | settings, head="scores", max_steps=steps)
    metrics = [merge_stats([learner.step(i, [pairs()], None, None, None)]) for i in range(steps)]
    return learner, engine, metrics


def scores_of(learner: Learner, given: Experience) -> list[float]:
    share = learner.infer([given])
    ends = np.cumsum(given.completions.lengths[share.completions]) - 1
    return [float(share.values[ends][list(share.completions).index(i)]) for i in range(len(given.completions))]


def hugging_face(directory: Path, texts: list[list[int]], side: str) -> list[float]:
    """Return transformers' scores of these texts in one padded batch."""
    model: Any = AutoModelForSequenceClassification.from_pretrained(directory, dtype=torch.float32)
    tokenizer: Any = AutoTokenizer.from_pretrained(directory, padding_side=side)
    batch = tokenizer.pad({"input_ids": texts}, return_tensors="pt")
    positions = (batch["attention_mask"].cumsum(-1) - 1).clamp(min=0)
    return model(**batch, position_ids=positions).logits[:, 0].tolist()


def test_training_separates_chosen_from_rejected(model: Path) -> None:
    learner, _, metrics = train(model, 12)
    assert metrics[-1]["loss"] < 0.1 < 0.3 < metrics[0]["loss"]
    assert metrics[-1]["accuracy"] == 1
    assert metrics[-1]["min_reward"] < metrics[-1]["mean_reward"] < metrics[-1]["max_reward"]
    scores = np.array(scores_of(learner, pairs())).reshape(-1, 2)
    assert (scores[:, 0] > scores[:, 1]).all()


def test_the_first_loss_is_that_of_the_scores_before(model: Path) -> None:
    learner, _ = learner_of(model, SETTINGS, head="scores")
    before = np.array(scores_of(learner, pairs())).reshape(-1, 2)
    metrics = merge_stats([learner.step(0, [pairs()], None, None, None)])
    assert metrics["loss"] == pytest.approx(np.log1p(np.exp(before[:, 1] - before[:, 0])).mean(), rel=1e-4)
    assert metrics["min_reward"] == pytest.approx(before.min(), rel=1e-4)
    assert metrics["max_reward"] == pytest.approx(before.max(), rel=1e-4)
    assert metrics["mean_reward"] == pytest.approx(before.mean(), abs=1e-4)


@pytest.mark.parametrize("side", ["right", "left"])
def test_scores_equal_those_of_transformers(model: Path, tmp_path: Path, side: str) -> None:
    learner, _, _ = train(model, 2)
    learner.export(str(tmp_path / "out"))
    texts = [prompt + completion for prompt, group in PAIRS for completion in group]
    ours = scores_of(learner, pairs())
    assert np.std(ours) > 0.1
    assert hugging_face(tmp_path / "out", texts, side) == pytest.approx(ours, abs=1e-4)


def test_the_directory_is_one_of_a_reward_model(model: Path, tmp_path: Path) -> None:
    learner, engine, _ = train(model, 1)
    learner.export(str(tmp_path / "out"))
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    family = {"qwen2": "Qwen2", "llama": "Llama"}[config["model_type"]]
    assert config["architectures"] == [f"{family}ForSequenceClassification"]
    assert list(config["id2label"]) == ["0"]
    assert config["pad_token_id"] == padding_token(str(model))
    loaded: Any = AutoModelForSequenceClassification.from_pretrained(tmp_path / "out", dtype=torch.float32)
    assert loaded.num_labels == 1
    theirs = dict(loaded.named_parameters())
    assert sorted(theirs) == sorted(name for name, _ in engine.weights())
    assert all(torch.equal(theirs[name], weight) for name, weight in engine.weights())


def test_training_continues_from_a_reward_model(model: Path, tmp_path: Path) -> None:
    learner, _, _ = train(model, 2)
    learner.export(str(tmp_path / "out"))
    reloaded, _ = learner_of(tmp_path / "out", SETTINGS, head="scores")
    assert scores_of(reloaded, pairs()) == pytest.approx(scores_of(learner, pairs()), abs=1e-6)


def test_without_a_padding_token_the_end_of_sequence_is_skipped(llama: Path, tmp_path: Path) -> None:
    # As in TRL, the end of sequence serves as padding, so both score a text at the token before it.
    source = tmp_path / "source"
    shutil.copytree(llama, source)
    settings = json.loads((source / "tokenizer_config.json").read_text())
    del settings["pad_token"]
    (source / "tokenizer_config.json").write_text(json.dumps(settings))
    assert (padding_token(str(llama)), padding_token(str(source))) == (2, 1)
    learner, _, _ = train(source, 1)
    learner.export(str(tmp_path / "out"))
    texts = [prompt + completion for prompt, group in PAIRS for completion in group]
    ours = scores_of(learner, pairs())
    assert hugging_face(tmp_path / "out", texts, "right") == pytest.approx(ours, abs=1e-4)
    without_end = experience([(p, [c[:-1] for c in group]) for p, group in PAIRS])
    assert scores_of(learner, without_end) == pytest.approx(ours, abs=1e-5)


def test_the_score_layer_is_drawn_by_the_seed(qwen2: Path) -> None:
    torch.manual_seed(5)
    one = load_scorer(str(qwen2), "float32", seed=1).score.weight
    torch.manual_seed(6)
    two = load_scorer(str(qwen2), "float32", seed=1).score.weight
    other = load_scorer(str(qwen2), "float32", seed=2).score.weight
    assert torch.equal(one, two)
    assert not torch.equal(one, other)
    assert 0.1 < one.std().item() < 0.3  # the model's initializer_range is 0.2


def test_a_model_with_many_labels_is_refused(model: Path, tmp_path: Path) -> None:
    learner, _, _ = train(model, 1)
    learner.export(str(tmp_path / "out"))
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    config |= {"id2label": {"0": "good", "1": "bad"}, "label2id": {"good": 0, "bad": 1}}
    (tmp_path / "out" / "config.json").write_text(json.dumps(config))
    with pytest.raises(ModelError, match="this one has 2 labels"):
        load_scorer(str(tmp_path / "out"), "float32")


HEADS = ("help", "safe")


def two_headed(objectives: tuple[str, ...]) -> Experience:
    """Return PAIRS, whose rows have these objectives."""
    prompts = tuple(Prompt(id=str(i), text="", objective=name) for i, name in enumerate(objectives))
    return replace(pairs(), prompts=prompts)


def final_scores_of(learner: Learner) -> Any:
    """Return the scores of the six completions of PAIRS: [6, K]."""
    share = learner.infer([pairs()])
    ends = np.cumsum(pairs().completions.lengths[share.completions]) - 1
    return share.values[ends][np.argsort(share.completions)]


def test_a_pair_trains_the_score_of_its_objective_alone(model: Path) -> None:
    learner, engine = learner_of(model, SETTINGS | {"objectives": HEADS}, head="scores")
    engine.module.model.requires_grad_(False)
    before, scores = engine.module.score.weight.detach().clone(), final_scores_of(learner)
    metrics = merge_stats([learner.step(0, [two_headed(("safe",) * 3)], None, None, None)])
    after = engine.module.score.weight
    assert torch.equal(after[0], before[0])
    assert not torch.equal(after[1], before[1])
    expected = np.log1p(np.exp(scores[1::2, 1] - scores[::2, 1])).mean()
    assert metrics["loss"] == metrics["pairs/safe/loss"] == pytest.approx(expected, rel=1e-4)
    assert metrics["min_reward"] == pytest.approx(scores[:, 1].min(), rel=1e-4)


def test_two_scores_learn_opposite_preferences_and_are_loaded_by_name(model: Path, tmp_path: Path) -> None:
    settings = SETTINGS | {"objectives": HEADS}
    learner, _ = learner_of(model, settings, head="scores", max_steps=24)
    opposite = replace(two_headed(("safe",) * 3), rewards=np.float32([0, 1] * 3))
    for i in range(24):
        learner.step(i, [opposite if i % 2 else two_headed(("help",) * 3)], None, None, None)
    scores = final_scores_of(learner)
    assert (scores[::2, 0] > scores[1::2, 0]).all()
    assert (scores[::2, 1] < scores[1::2, 1]).all()
    assert learner.margins([two_headed(("help", "safe", "help"))]).values == pytest.approx(
        [scores[0, 0] - scores[1, 0], scores[2, 1] - scores[3, 1], scores[4, 0] - scores[5, 0]], abs=1e-4
    )
    learner.export(str(tmp_path / "out"))
    loaded: Any = AutoModelForSequenceClassification.from_pretrained(tmp_path / "out", dtype=torch.float32)
    assert loaded.config.id2label == {0: "help", 1: "safe"}
    for row, name in enumerate(HEADS):
        assert torch.equal(load_score(str(tmp_path / "out"), "float32", name).score.weight[0], loaded.score.weight[row])
    with pytest.raises(ModelError, match="no label kind; give one of help, safe"):
        load_score(str(tmp_path / "out"), "float32", "kind")
    again, _ = learner_of(tmp_path / "out", settings, head="scores")
    assert final_scores_of(again) == pytest.approx(scores, abs=1e-6)
    with pytest.raises(ModelError, match="has the labels help, safe, not safe, help"):
        learner_of(tmp_path / "out", SETTINGS | {"objectives": HEADS[::-1]}, head="scores")


def test_scores_do_not_depend_on_the_other_rows(model: Path) -> None:
    learner, _ = learner_of(model, SETTINGS, head="scores")
    together = scores_of(learner, pairs())
    alone = [scores_of(learner, experience([(p, [c])]))[0] for p, group in PAIRS for c in group]
    assert together == pytest.approx(alone, abs=1e-5)


# ------------------------------------------------------------------------------------------------ held-out pairs


def test_margins_of_held_out_pairs(qwen2: Path) -> None:
    prompts = tuple(Prompt(id=str(i), text="", columns=c) for i, c in enumerate([{"source": "web"}, {}, {"source": 7}]))
    given = experience(PAIRS, rewards=[1.0, 0.0] * 3, prompts=prompts)
    learner, _ = learner_of(qwen2, SETTINGS, head="scores")
    scores = np.array(scores_of(learner, given)).reshape(-1, 2)
    ranks = [learner_of(qwen2, SETTINGS, head="scores", rank=r, world_size=2, budget=14)[0] for r in range(2)]
    shares = [rank.margins([given]) for rank in ranks]
    assert all(len(share.groups) for share in shares)
    margins = merge_margins(shares)
    assert margins.groups.tolist() == [0, 1, 2]
    assert margins.values.tolist() == pytest.approx((scores[:, 0] - scores[:, 1]).tolist(), abs=1e-5)
    assert margins.sources == ("web", None, "7")
    assert ranks[0].margins([experience([])]).sources == ()


def test_margins_of_dpo_are_those_of_its_implicit_reward(qwen2: Path) -> None:
    # log π − log π_ref is ½ at each token by construction, so β/2 for every token that the chosen one has more.
    given = experience(PAIRS, rewards=[1.0, 0.0] * 3)
    learner, _ = learner_of(qwen2, {"type": "dpo", "beta": 0.2})
    share = learner.infer([given])
    reference = [replace(share, values=share.values - np.float32(0.5))]
    values = learner.margins([given], reference).values
    assert values.tolist() == pytest.approx([0.1 * (3 - 2), 0.1 * (7 - 2), 0.1 * (2 - 3)], abs=1e-6)
    assert learner.margins([given], [share]).values.tolist() == [0, 0, 0]  # policy = reference
