"""The same recipes with a second model family (untied head, BPE, chat template) and conversational data."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import attempts
import pyarrow.parquet as pq
import pytest
from attempts import Run
from families import read_jsonl
from test_runs import CLIPPED, GROUPED, SAMPLED, TRAINED, assert_loads, assert_synchronous, assert_whole
from transformers import AutoTokenizer

pytestmark = [pytest.mark.stack, pytest.mark.long]

Finished = Callable[..., Run]


def test_the_data_are_conversations_as_trl_has_them(llama: Path) -> None:
    prompt, answer = {"role": "user", "content": "ebcad>"}, {"role": "assistant", "content": "abcde"}
    assert read_jsonl(llama / "prompts.jsonl")[0].keys() == {"prompt", "solution"}
    for name, columns in (("demonstrations", {"prompt", "completion"}), ("pairs", {"prompt", "chosen", "rejected"})):
        row = read_jsonl(llama / f"{name}.jsonl")[0]
        assert row.keys() == columns
        for column, (message,) in row.items():
            assert message.keys() == prompt.keys()
            assert message["role"] == (prompt if column == "prompt" else answer)["role"]


def test_supervised_fine_tuning(finished: Finished, llama: Path) -> None:
    run = finished("base", llama)
    assert run.exit["cause"] == "completed"
    assert run.metrics[-1]["loss"] < run.metrics[0]["loss"] - 0.5
    assert_loads(run.path / "model")
    assert AutoTokenizer.from_pretrained(run.path / "model").chat_template


def test_grpo(finished: Finished, llama: Path) -> None:
    run = finished("grpo", llama)
    assert_whole(run, attempts.recipe("grpo").stages[1], TRAINED | SAMPLED | GROUPED | CLIPPED)
    assert_synchronous(run)
    assert max(run.figures("reward")) > 0, "answers reach the reward function as messages, solutions as a column"
    sample = pq.read_table(run.path / "samples" / "step-1.parquet").to_pylist()[0]
    assert sample["prompt"].startswith("user: ")


def test_offline_dpo(finished: Finished, llama: Path) -> None:
    run = finished("offline", llama)
    assert run.exit["cause"] == "completed"
    assert run.metrics[0]["loss"] == pytest.approx(0.693147, abs=1e-5), "log 2: the policy starts as its reference"
    assert run.metrics[-1]["rewards/margins"] > 0
    assert_loads(run.path / "model")
