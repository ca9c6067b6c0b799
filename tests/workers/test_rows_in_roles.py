"""Tools and template arguments of a row reach every role: rollout, dataset, rewards and reward models."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fakes import experience
from templates import CHATML, GEMMA, MARKERS
from transformers import PreTrainedTokenizerFast

from configs.quickstart.tiny import bpe_tokenizer
from workers.config import FunctionRewardConfig, ModelConfig, RolloutConfig
from workers.encoder import Encoder
from workers.engines.base import ModelError, Request, Response
from workers.reward import Reward
from workers.rollout import Rollout
from workers.types import Example, Finish, Prompt, Sampling

WITH_TOOLS = "{{ tools | tojson if tools else '' }}{{ mood }}" + CHATML
TOOL = {"type": "function", "function": {"name": "add"}}
COLUMNS = {"tools": [TOOL], "chat_template_kwargs": {"mood": "calm"}}
QUESTION = [{"role": "user", "content": "what"}]
ANSWER = [{"role": "assistant", "content": "four"}]
SYSTEM = [{"role": "system", "content": "s"}, *QUESTION]
WRITTEN = (
    '[{"type": "function", "function": {"name": "add"}}]calm<|im_start|>user\nwhat<|im_end|>\n<|im_start|>assistant\n'
)


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "qwen2", "max_position_embeddings": 512}))
    return tmp_path


def write_tokenizer(directory: Path, template: str) -> PreTrainedTokenizerFast:
    tokenizer = bpe_tokenizer(["what is two and two", "it is four"], 300, template)
    tokenizer.add_special_tokens({"extra_special_tokens": list(MARKERS)})
    tokenizer.save_pretrained(directory)
    return tokenizer


class NotingSampler:
    """Sampler that returns one token, and records prompts and stop tokens."""

    version = 0

    def __init__(self) -> None:
        self.calls: list[tuple[list[list[int]], list[int]]] = []

    def generate(self, requests: Sequence[Request], *, stop_token_ids: Sequence[int], **_: Any) -> list[Response]:
        self.calls.append(([list(request.tokens) for request in requests], list(stop_token_ids)))
        return [Response(np.array([9], np.int32), np.zeros(1, np.float32), Finish.stop) for _ in requests]


class NotingRollout(Rollout):
    """Rollout role with that sampler."""

    sampler: NotingSampler

    def _start(self, model: ModelConfig, max_model_len: int, *, seed: int, cuda: bool) -> Any:
        self.sampler = NotingSampler()
        return self.sampler


def rollout(directory: Path) -> NotingRollout:
    lengths = RolloutConfig(max_prompt_length=200, max_completion_length=4)
    return NotingRollout(ModelConfig(path=str(directory)), lengths, index=0, seed=0, cuda=False)


def test_prompts_are_sampled_for_with_their_tools_and_stop_at_the_end_of_a_turn(directory: Path) -> None:
    tokenizer = write_tokenizer(directory, WITH_TOOLS)
    role, sampling = rollout(directory), Sampling(num_generations=1, max_completion_length=4)
    end = tokenizer.convert_tokens_to_ids("<|im_end|>")
    role.generate([Prompt(id="p:1", text=QUESTION, columns=COLUMNS)], sampling)
    role.generate([Prompt(id="p:2", text="what", columns=COLUMNS)], sampling)
    warm_up, chat, text = role.sampler.calls
    assert [tokenizer.decode(tokens) for tokens in chat[0]] == [WRITTEN]
    assert [tokenizer.decode(tokens) for tokens in text[0]] == ["what"]
    assert (warm_up[1], chat[1], text[1]) == ([1], sorted([1, end]), [1])
    role.generate(
        [Prompt(id="p:1", text=QUESTION)], Sampling(num_generations=1, max_completion_length=4, ignore_eos=True)
    )
    assert role.sampler.calls[-1][1] == []


def test_rows_of_a_dataset_are_encoded_with_their_tools(directory: Path) -> None:
    tokenizer = write_tokenizer(directory, WITH_TOOLS)
    role = Encoder(ModelConfig(path=str(directory)), max_length=200)
    row = Example(prompt=Prompt(id="d:1", text=QUESTION, columns=COLUMNS), completions=(ANSWER,))
    encoded = role.encode([row])
    assert tokenizer.decode(encoded.prompt_tokens[0]) == WRITTEN
    assert tokenizer.decode(encoded.completions[0]) == "four<|im_end|>\n"


def test_a_row_that_cannot_be_used_is_named_wherever_it_is_met(directory: Path) -> None:
    write_tokenizer(directory, GEMMA)
    prompt = Prompt(id="p.jsonl:17", text=SYSTEM)
    with pytest.raises(ModelError, match=r"p\.jsonl:17: the chat template refuses it: System role not supported"):
        rollout(directory).generate([prompt], Sampling(num_generations=1, max_completion_length=4))
    with pytest.raises(ModelError, match=r"p\.jsonl:17: the chat template refuses it: System role not supported"):
        Encoder(ModelConfig(path=str(directory)), max_length=200).encode(
            [Example(prompt=prompt, completions=(ANSWER,))]
        )


FUNCTION = """
def closed(completions, **_):
    return [float(c[0]["content"] == "<think>two</think>four") for c in completions]

def bare(completions, **_):
    return [float(c[0]["content"] == "twofour") for c in completions]
"""


@pytest.mark.parametrize(("skip", "scores"), [(True, [0.0, 1.0]), (False, [1.0, 0.0])])
def test_rewards_see_special_tokens_if_configured(skip: bool, scores: list[float], directory: Path) -> None:
    tokenizer = write_tokenizer(directory, CHATML)
    (directory / "mine.py").write_text(FUNCTION)
    rewards = [FunctionRewardConfig(type="function", function=f"{directory}/mine.py:{f}") for f in ("closed", "bare")]
    model = ModelConfig(path=str(directory))
    worker = Reward(model, rewards, index=0, num_workers=1, num_samples=1, skip_special_tokens=skip)
    tokens = tokenizer("<think>two</think>four<|im_end|>", add_special_tokens=False)["input_ids"]
    # The message before consists of only a tool call.
    call = {"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": {"a": 1}}}]}
    messages = [*QUESTION, call, {"role": "tool", "content": "2"}]
    prompt = Prompt(id="p:1", text=messages)
    scored = worker.score([experience([([3], [tokens])], prompts=(prompt,), logprobs=[-1.0] * len(tokens))])
    assert [float(scored.by_scorer[name][0]) for name in ("closed", "bare")] == scores
    assert scored.samples[0].prompt == (
        'user: what\nassistant: [{"function": {"name": "f", "arguments": {"a": 1}}}]\ntool: 2'
    )
