"""Text-classification models as scorers, compared with transformers: encoders and decoders, one text and pairs."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoConfig, AutoModelForSequenceClassification, AutoTokenizer, pipeline

from configs.quickstart.tiny import character_tokenizer
from workers.config import ClassifierRewardConfig, ModelConfig
from workers.engines.base import ModelError
from workers.reward import Reward
from workers.rewards import build
from workers.rewards.base import Completed, RewardError
from workers.rewards.classifier import applied
from workers.types import Prompt, Text

SHAPE = {
    "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2,
    "num_key_value_heads": 2, "max_position_embeddings": 40, "initializer_range": 0.4,
}  # fmt: skip
LABELS = {0: "neutral", 1: "toxic", 2: "Severe toxicity"}
TEXTS = ("ab", "abcdefgh", "h", "gfedcba")


def written(directory: Path, family: str, labels: dict[int, str] = LABELS, **changes: Any) -> Path:
    """Write a random classifier with a tokenizer of letters; it pads with its token 0."""
    tokenizer = character_tokenizer("abcdefgh>")
    names = {"id2label": labels, "label2id": {name: i for i, name in labels.items()}, "pad_token_id": 0}
    config = AutoConfig.for_model(family, vocab_size=len(tokenizer), **SHAPE | names | changes)
    torch.manual_seed(0)
    model: Any = AutoModelForSequenceClassification.from_config(config, dtype=torch.float32)
    model.save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    return directory


@pytest.fixture(scope="module")
def toxicity(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return written(tmp_path_factory.mktemp("models") / "toxicity", "bert")


def settings(path: Path, label: str = "toxic", **changes: Any) -> ClassifierRewardConfig:
    return ClassifierRewardConfig(type="classifier", path=str(path), label=label, dtype="float32", **changes)


def completed(texts: tuple[Text, ...], **columns: tuple[Any, ...]) -> Completed:
    prompts = [
        Prompt(id=f"p:{i}", text="", columns={name: values[i] for name, values in columns.items()})
        for i in range(len(texts))
    ]
    return Completed(prompts=prompts, completions=list(texts), completion_ids=[[0]] * len(texts))


def logits_of(path: Path, *parts: str) -> torch.Tensor:
    model: Any = AutoModelForSequenceClassification.from_pretrained(path, dtype=torch.float32)
    tokenizer: Any = AutoTokenizer.from_pretrained(path)
    with torch.no_grad():
        logits: torch.Tensor = model(**tokenizer(*parts, return_tensors="pt")).logits[0]
    return logits


@pytest.mark.parametrize("budget", [16384, 8, 1])
@pytest.mark.parametrize("family", ["bert", "roberta", "qwen2"])
def test_scores_are_those_of_transformers(tmp_path: Path, family: str, budget: int) -> None:
    path = written(tmp_path / "judge", family)
    scorer = build(settings(path, tokens_per_micro_batch=budget))
    expected = [logits_of(path, text).softmax(0)[1].item() for text in TEXTS]
    assert scorer.score(completed(TEXTS)).tolist() == pytest.approx(expected, abs=1e-5)
    assert np.std(expected) > 0.01
    assert scorer.name == "toxic"


def test_a_pipeline_of_transformers_gives_the_same(toxicity: Path) -> None:
    judge: Any = pipeline("text-classification", model=str(toxicity), top_k=None, device="cpu")
    expected = [next(r["score"] for r in found if r["label"] == "Severe toxicity") for found in judge([*TEXTS])]
    scorer = build(settings(toxicity, "Severe toxicity"))
    assert scorer.score(completed(TEXTS)).tolist() == pytest.approx(expected, abs=1e-5)
    assert scorer.name == "severe_toxicity"


def test_several_labels_at_once_have_a_sigmoid_each(tmp_path: Path, toxicity: Path) -> None:
    path = written(tmp_path / "many", "bert", problem_type="multi_label_classification")
    logit = logits_of(path, "abc")[1].item()
    of_function = {
        function: build(settings(path, function_to_apply=function)).score(completed(("abc",)))[0]
        for function in (None, "sigmoid", "none")
    }
    sigmoid = pytest.approx(1 / (1 + np.exp(-logit)), abs=1e-5)
    assert of_function == {None: sigmoid, "sigmoid": sigmoid, "none": pytest.approx(logit, abs=1e-4)}
    assert build(settings(toxicity, function_to_apply="sigmoid")).score(completed(("abc",)))[0] == sigmoid


def test_functions() -> None:
    logits = np.asarray([[0.0, np.log(3.0)], [1000.0, -1000.0]])
    assert applied("softmax", logits) == pytest.approx(np.asarray([[0.25, 0.75], [1.0, 0.0]]))
    assert applied("sigmoid", logits) == pytest.approx(np.asarray([[0.5, 0.75], [1.0, 0.0]]))
    assert applied("none", logits) is logits


def test_a_column_is_the_premise_of_the_completion(tmp_path: Path) -> None:
    path = written(tmp_path / "nli", "bert", {0: "contradiction", 1: "entailment"})
    scorer = build(settings(path, "entailment", premise_column="reference"))
    references = ("abcd", None, "h", " ")
    scores = scorer.score(completed(("ab", "ab", "gh", "a"), reference=references))
    expected = [logits_of(path, *pair).softmax(0)[1].item() for pair in (("abcd", "ab"), ("h", "gh"))]
    assert scores[[0, 2]].tolist() == pytest.approx(expected, abs=1e-5)
    assert np.isnan(scores).tolist() == [False, True, False, True]  # without a premise it abstains
    with pytest.raises(RewardError, match=r"prompt p:0 has list in column 'reference', not text"):
        scorer.score(completed(("ab",), reference=(["a"],)))


def test_of_a_conversation_the_last_message_is_read(toxicity: Path) -> None:
    scorer = build(settings(toxicity))
    talk = [{"role": "assistant", "content": "abc"}]
    assert scorer.score(completed((talk, "abc"))).tolist() == [
        pytest.approx(s) for s in scorer.score(completed(("abc",) * 2))
    ]


@pytest.mark.parametrize(("family", "positions"), [("bert", 40), ("roberta", 39)])
def test_a_long_text_is_truncated_at_the_last_position(tmp_path: Path, family: str, positions: int) -> None:
    # RoBERTa counts positions from its padding token on: with the id 0, the first position is 1.
    path = written(tmp_path / "judge", family)
    scorer = build(settings(path))
    long, cut = "abcdefgh" * 10, ("abcdefgh" * 10)[:positions]
    assert scorer.score(completed((long,))) == pytest.approx(scorer.score(completed((cut,))))
    assert scorer.score(completed((long,))) != pytest.approx(scorer.score(completed((cut[:-1],))), abs=2e-5)
    short = build(settings(path, max_length=3))
    assert short.score(completed((long,))) == pytest.approx(scorer.score(completed(("abc",))))


def test_a_reward_worker_weights_it(toxicity: Path, qwen2: Path) -> None:
    from fakes import experience

    sampled = experience([([11], [[3, 4, 1], [4, 1]])], prompts=(Prompt(id="p", text="ab"),))
    configs = [settings(toxicity, weight=-2.0), settings(toxicity, weight=0.0)]
    scores = Reward(ModelConfig(path=str(qwen2)), configs, index=0, num_workers=1, num_samples=0).score([sampled])
    expected = [logits_of(toxicity, text).softmax(0)[1].item() for text in ("ab", "b")]
    assert scores.by_scorer["toxic"].tolist() == pytest.approx(expected, abs=1e-5)
    assert set(scores.by_scorer) == {"toxic", "toxic_2"}
    assert scores.rewards.tolist() == pytest.approx([-2 * p for p in expected], abs=1e-5)


@pytest.mark.parametrize("family", ["bert", "qwen2"])
def test_an_empty_completion_has_a_score(tmp_path: Path, family: str) -> None:
    # The tokenizer of letters adds no special tokens: the text is the end of sequence alone.
    path = written(tmp_path / "judge", family)
    tokenizer: Any = AutoTokenizer.from_pretrained(path)
    expected = logits_of(path, tokenizer.eos_token).softmax(0)[1].item()
    assert build(settings(path)).score(completed(("", "ab")))[0] == pytest.approx(expected, abs=1e-5)


# ------------------------------------------------------------------------------------------------ refusals


def test_a_label_that_the_model_lacks(toxicity: Path) -> None:
    with pytest.raises(RewardError, match="no label 'insult'; its labels are neutral, toxic, Severe toxicity"):
        build(settings(toxicity, "insult"))


def test_models_that_are_no_classifiers(tmp_path: Path, qwen2: Path) -> None:
    with pytest.raises(ModelError, match="is not a classifier"):
        build(settings(qwen2))
    with pytest.raises(ModelError, match="has one label: it is a reward model; use it with type: model"):
        build(settings(written(tmp_path / "one", "bert", {0: "score"}), "score"))


def test_a_model_whose_head_is_not_in_its_files(tmp_path: Path, toxicity: Path) -> None:
    from safetensors.torch import load_file, save_file

    shutil.copytree(toxicity, tmp_path / "headless")
    weights = load_file(toxicity / "model.safetensors")
    save_file({k: v for k, v in weights.items() if "classifier" not in k}, tmp_path / "headless" / "model.safetensors",
              metadata={"format": "pt"})  # fmt: skip
    with pytest.raises(ModelError, match=r"its files lack weights \(2, as classifier.bias\)"):
        build(settings(tmp_path / "headless"))


def test_weights_that_are_not_finite(tmp_path: Path, toxicity: Path) -> None:
    from safetensors.torch import load_file, save_file

    shutil.copytree(toxicity, tmp_path / "broken")
    weights = load_file(toxicity / "model.safetensors")
    weights["classifier.bias"] = torch.full_like(weights["classifier.bias"], torch.nan)
    save_file(weights, tmp_path / "broken" / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(RewardError, match="scores that are not finite for prompt p:0"):
        build(settings(tmp_path / "broken")).score(completed(("ab",)))
