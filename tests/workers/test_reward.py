"""Reward role: shares of the groups, weights of the scorers, and samples."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fakes import experience

from workers.config import FunctionRewardConfig, ModelConfig
from workers.reward import Reward
from workers.rewards.base import RewardError
from workers.types import Experience, Finish, Prompt, Sample

# Ids from 3: a 3, b 4, c 5; 1 ends a completion.
GROUPS = [([3], [[3, 3, 1], [4, 1]]), ([4], [[4, 4, 4], [1]]), ([5], [[3, 4, 1], [5, 1]])]
TEXTS = ["aa", "b", "bbb", "", "ab", "c"]
PROMPTS = tuple(Prompt(id=f"p{g}", text=text, columns={"want": text}) for g, text in enumerate("abc"))
FINISH = np.array([Finish.stop, Finish.stop, Finish.length, Finish.stop, Finish.stop, Finish.stop], np.int32)

FUNCTIONS = """
def length(completions, want, **_):
    return [len(c) for c in completions]

def begins_right(completions, want, **_):
    return [float(c.startswith(w)) if c else None for c, w in zip(completions, want)]

def only_b(completions, **_):
    return [1.0 if 'b' in c else None for c in completions]

async def is_message(completions, **_):
    return [1.0 if c == [{"role": "assistant", "content": "aa"}] else 0.0 for c in completions]
"""


@pytest.fixture
def functions(tmp_path: Path) -> Path:
    (tmp_path / "mine.py").write_text(FUNCTIONS)
    (tmp_path / "other.py").write_text("def length(completions, **_): return [10.0 for _ in completions]")
    return tmp_path


def worker(
    model: Path,
    functions: Path,
    *rewards: tuple[str, float],
    index: int = 0,
    num_workers: int = 1,
    num_samples: int = 2,
) -> Reward:
    configs = [FunctionRewardConfig(type="function", function=f"{functions}/{f}", weight=w) for f, w in rewards]
    return Reward(ModelConfig(path=str(model)), configs, index=index, num_workers=num_workers, num_samples=num_samples)


def sampled(**changes: Any) -> Experience:
    given = {"prompts": PROMPTS, "logprobs": [-1] * 13, "version": 6, "finish": FINISH, **changes}
    return experience(GROUPS, **given)


def test_weights_and_passes(qwen2: Path, functions: Path) -> None:
    rewards = worker(qwen2, functions, ("mine.py:length", 0.5), ("mine.py:begins_right", 2.0)).score([sampled()])
    assert rewards.by_scorer["length"].tolist() == [2, 1, 3, 0, 2, 1]
    assert rewards.by_scorer["begins_right"].tolist() == pytest.approx([1, 0, 1, np.nan, 0, 1], nan_ok=True)
    assert rewards.rewards.tolist() == [1 + 2, 0.5, 1.5 + 2, 0, 1, 0.5 + 2]
    assert rewards.rewards.dtype == np.float32


def test_a_sum_beyond_float32_names_the_row(qwen2: Path, functions: Path) -> None:
    with pytest.raises(RewardError, match=r"of the rewards of prompt p0 exceeds float32 \(length 2\)"):
        worker(qwen2, functions, ("mine.py:length", 3e38)).score([sampled()])  # 2 times 3e38 is above 3.4e38


def test_two_functions_of_one_name_both_count(qwen2: Path, functions: Path) -> None:
    rewards = worker(qwen2, functions, ("mine.py:length", 1.0), ("other.py:length", 1.0)).score([sampled()])
    assert list(rewards.by_scorer) == ["length", "length_2"]
    assert rewards.rewards.tolist() == [12, 11, 13, 10, 12, 11]


def test_a_completion_on_which_all_pass_is_an_error(qwen2: Path, functions: Path) -> None:
    with pytest.raises(RewardError, match=r"every reward returned None for 3 completions \(prompts p0, p1, p2"):
        worker(qwen2, functions, ("mine.py:only_b", 1.0)).score([sampled()])


def test_workers_share_the_groups_in_order(qwen2: Path, functions: Path) -> None:
    parts = [sampled()]
    shares = [
        worker(qwen2, functions, ("mine.py:length", 1.0), index=i, num_workers=2).score(parts).rewards.tolist()
        for i in range(2)
    ]
    assert shares == [[2, 1], [3, 0, 2, 1]]


def test_a_worker_without_a_share_calls_no_function(qwen2: Path, functions: Path) -> None:
    alone = experience(GROUPS[:1], prompts=PROMPTS[:1], logprobs=[-1] * 5)
    idle = worker(qwen2, functions, ("mine.py:length", 1.0), index=0, num_workers=2).score([alone])
    assert idle.rewards.tolist() == []
    assert idle.by_scorer["length"].tolist() == []
    assert idle.samples == ()


def test_samples_are_the_first_of_each_group_from_the_first_worker(qwen2: Path, functions: Path) -> None:
    first = worker(qwen2, functions, ("mine.py:length", 1.0), num_samples=2).score([sampled()])
    assert first.samples == (
        Sample(prompt_id="p0", prompt="a", completion="aa", reward=2.0, version=6, finish="stop", length=3),
        Sample(prompt_id="p1", prompt="b", completion="bbb", reward=3.0, version=6, finish="length", length=3),
    )
    second = worker(qwen2, functions, ("mine.py:length", 1.0), index=1, num_workers=2).score([sampled()])
    assert second.samples == ()


def test_samples_are_of_the_first_chunk_of_a_step_alone(qwen2: Path, functions: Path) -> None:
    """An evaluation shows the same prompts whatever the size of its chunks."""
    later = worker(qwen2, functions, ("mine.py:length", 1.0)).score([sampled(chunk=1)])
    assert (later.samples, later.chunk) == ((), 1)


def test_conversations_are_answered_with_a_message(qwen2: Path, functions: Path) -> None:
    prompts = tuple(Prompt(id=f"p{g}", text=[{"role": "user", "content": "hi"}]) for g in range(3))
    scored = worker(qwen2, functions, ("mine.py:is_message", 1.0), num_samples=1).score([sampled(prompts=prompts)])
    assert scored.rewards.tolist() == [1, 0, 0, 0, 0, 0]
    assert json.dumps(scored.samples[0].prompt) == '"user: hi"'
