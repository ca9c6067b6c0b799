"""Runs that train a reward model, use it as a reward and as the start of a critic; and rejection sampling."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import attempts
import pyarrow.parquet as pq
import pytest
import torch
from attempts import Run
from families import read_jsonl
from test_runs import CLIPPED, CRITIC, GROUPED, SAMPLED, TRAINED, assert_synchronous, assert_whole, facts_of_steps
from transformers import AutoModelForSequenceClassification, AutoTokenizer

pytestmark = pytest.mark.stack

Finished = Callable[..., Run]
JUDGED = SAMPLED - {"rewards/letters_in_place/mean", "rewards/letters_in_place/std"}


@pytest.fixture
def family(finished: Finished, qwen2: Path) -> Path:
    """Return a directory in which all stages of `judged` have run."""
    finished("judged", qwen2)
    return qwen2


def texts_scored(directory: Path, pairs: list[tuple[str, str]]) -> list[float]:
    """Return the scores of these (prompt, completion) pairs by plain transformers."""
    model: Any = AutoModelForSequenceClassification.from_pretrained(directory, dtype=torch.float32).requires_grad_(
        False
    )
    tokenizer: Any = AutoTokenizer.from_pretrained(directory)
    texts = [tokenizer(p)["input_ids"] + tokenizer(c)["input_ids"] + [tokenizer.eos_token_id] for p, c in pairs]
    return [model(torch.tensor([tokens])).logits.item() for tokens in texts]


def test_a_reward_model_is_trained(family: Path) -> None:
    run = Run(family / "runs" / "judge")
    assert run.facts == ["ATTEMPT 0", "PLACED 0", *facts_of_steps(8, 4, sampled=False), "FINISHED 8"]
    names = {"loss", "accuracy", "margin", "min_reward", "mean_reward", "max_reward", "pairs/count", "num_tokens"}
    base, *trained = run.metrics
    for row in trained:
        assert names - row.keys() == set()
        assert row["min_reward"] <= row["mean_reward"] <= row["max_reward"]
    assert trained[0]["loss"] == pytest.approx(math.log(2), abs=0.3)
    assert trained[-1]["loss"] < trained[0]["loss"]
    assert base["eval/pairs"] == trained[-1]["eval/pairs"] == 256
    assert base["eval/accuracy"] < trained[-1]["eval/accuracy"]
    assert base["eval/margin"] < trained[-1]["eval/margin"]
    assert 0 <= trained[-1]["eval/calibration_error"] <= 1
    rows = read_jsonl(family / "pairs.jsonl")[:64]
    chosen = texts_scored(run.path / "model", [(row["prompt"], row["chosen"]) for row in rows])
    rejected = texts_scored(run.path / "model", [(row["prompt"], row["rejected"]) for row in rows])
    assert sum(c > r for c, r in zip(chosen, rejected, strict=True)) > 40


def test_dpo_is_measured_on_pairs_by_its_implicit_reward(finished: Finished, qwen2: Path) -> None:
    run = finished("offline", qwen2, "name=measured", "data.eval_dataset=pairs.jsonl")
    base, *_, last = [row for row in run.metrics if "eval/margin" in row]
    assert (base["step"], last["step"]) == (0, 3)
    assert base["eval/margin"] == pytest.approx(0, abs=1e-4), "the policy starts as its reference"
    assert last["eval/margin"] > 0.01
    assert last["eval/accuracy"] > 0.5


def test_a_policy_is_trained_on_the_reward_model(family: Path) -> None:
    run = Run(family / "runs" / "judged")
    names = TRAINED | JUDGED | GROUPED | CLIPPED | {"rewards/judge/mean", "rewards/judge/std"}
    assert_whole(run, attempts.recipe("judged").stages[2], names)
    assert_synchronous(run)
    assert [row["step"] for row in run.metrics if "eval/rewards/judge/mean" in row] == [0, 3]
    samples = pq.read_table(run.path / "samples" / "step-1.parquet").to_pylist()
    scores = texts_scored(family / "runs" / "judge" / "model", [(s["prompt"], s["completion"]) for s in samples])
    assert [s["reward"] for s in samples] == pytest.approx(scores, abs=1e-4)


def test_a_critic_starts_from_it(family: Path) -> None:
    run = Run(family / "runs" / "criticised")
    names = TRAINED | SAMPLED | CRITIC | {"rewards/judge/mean"}
    assert_whole(run, attempts.recipe("judged").stages[3], names)
    assert_synchronous(run)


def test_the_best_samples_are_trained_on(finished: Finished, qwen2: Path) -> None:
    run = finished("kept", qwen2)
    names = TRAINED | SAMPLED | GROUPED | {"rejection/count", "rejection/kept", "rejection/reward"}
    assert_whole(run, attempts.recipe("kept").stages[1], names)
    assert_synchronous(run)
    assert run.figures("rejection/count") == [8, 8]
    assert run.figures("rejection/kept") == [8 / 32, 8 / 32]
    assert all(row["rejection/reward"] >= row["reward"] for row in run.metrics)
