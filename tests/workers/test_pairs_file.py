from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from fakes import experience
from templates import MARKERS

from configs.quickstart.tiny import bpe_tokenizer
from orchestrator.data import read_examples
from workers.algorithms.dpo import prepare
from workers.config import DpoConfig, ModelConfig, PairsConfig
from workers.encoder import Encoder
from workers.engines.hf_text import TextCodec
from workers.files.pairs_file import TEXTS, write_pairs
from workers.gold import with_gold
from workers.types import Experience, Finish, Prompt, ScoredBatch

CONFIG = DpoConfig(type="dpo", pairs=PairsConfig(gold="add"))
USER = [{"role": "user", "content": "what is two"}]


def write(path: Path, model: Path, sampled: Experience, rewards: Sequence[float]) -> None:
    scored = ScoredBatch(
        experience=sampled,
        rewards=np.array(rewards, np.float32),
        reference_logprobs=np.zeros(len(sampled.completions.values), np.float32),
        values=None,
    )
    batch, _ = prepare(scored, CONFIG)
    assert batch.sources is not None
    assert batch.margins is not None
    codec = TextCodec(ModelConfig(path=str(model)))
    write_pairs(path, batch.sources[0::2], batch.sources[1::2], batch.margins, scored, codec)


def test_a_pair_is_a_row_with_texts_scores_and_versions(qwen2: Path, tmp_path: Path) -> None:
    sampled = experience(
        [([3, 4, 11], [[3, 1], [4, 4, 1], [5, 1]]), ([5], [[6, 1], [7, 7, 7, 1]])],
        prompts=(Prompt(id="a.jsonl:1", text="ab>"), Prompt(id="a.jsonl:2", text="c")),
        logprobs=[-1.0] * 13,
        versions=np.array([4, 4, 5, 5, 5], np.int32),
        finish=np.array([Finish.length, *[Finish.stop] * 4], np.int32),
    )
    path = tmp_path / "rounds" / "1" / "pairs.parquet"
    write(path, qwen2, with_gold(sampled, [[], [3, 3, 1]]), [0.5, 2.0, 1.0, 0.25, 1.0, 3.0])
    first, second = pq.read_table(path).to_pylist()
    assert first == {
        "prompt_id": "a.jsonl:1",
        "prompt": "ab>",
        "chosen": "bb",
        "rejected": "a",
        "margin": 1.5,
        "chosen_score": 2.0,
        "chosen_rank": 1,
        "chosen_version": 4,
        "chosen_tokens": 3,
        "chosen_finish": "stop",
        "rejected_score": 0.5,
        "rejected_rank": 3,
        "rejected_version": 4,
        "rejected_tokens": 2,
        "rejected_finish": "length",
    }
    # The gold answer was sampled from no version.
    assert (second["chosen"], second["chosen_score"], second["chosen_version"]) == ("aa", 3.0, None)
    assert (second["rejected"], second["rejected_rank"]) == ("d", 3)


TOOL = {"type": "function", "function": {"name": "add", "parameters": {"type": "object", "properties": {}}}}
CALL = [
    {"role": "user", "content": "what"},
    {"role": "assistant", "content": None, "tool_calls": [{"function": {"name": "f", "arguments": {"x": 1}}}]},
    {"role": "tool", "content": "four"},
]
OTHER_CALL = [
    *USER,
    {"role": "assistant", "content": None, "tool_calls": [{"function": {"name": "g", "arguments": {"y": "z"}}}]},
    {"role": "tool", "content": "two"},
]
WITH_CALLS = (
    "{{ tools | tojson if tools else '' }}{{ mood }}{% for m in messages %}<|{{ m.role }}|>{{ m.content or '' }}"
    "{% if m.tool_calls %}{{ m.tool_calls | tojson }}{% endif %}</s>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


@pytest.fixture
def chat_model(llama: Path, tmp_path: Path) -> Path:
    """Return a directory with a BPE tokenizer whose template reads tools, tool calls and an argument."""
    directory = tmp_path / "chat"
    directory.mkdir()
    (directory / "config.json").write_text((llama / "config.json").read_text().replace("64", "2048"))
    tokenizer = bpe_tokenizer(["what is two and two", "it is four"], 300, WITH_CALLS)
    tokenizer.add_special_tokens({"extra_special_tokens": list(MARKERS)})
    tokenizer.save_pretrained(directory)
    return directory


PROMPTS = (
    Prompt(id="p:1", text=USER, columns={"tools": [TOOL], "solution": 4}),
    Prompt(id="p:2", text=CALL, columns={"chat_template_kwargs": {"mood": "calm"}}),
    Prompt(id="p:3", text=OTHER_CALL),
)
ANSWERS = (" it is four", "<think>two</think>four")


def sampled_chat(codec: TextCodec, prompts: Sequence[Prompt] = PROMPTS) -> Experience:
    def answer(prompt: Prompt, text: str) -> list[int]:
        completion: Any = text if isinstance(prompt.text, str) else [{"role": "assistant", "content": text}]
        return codec.encode_completion(prompt.text, completion, prompt.columns)

    groups = [(codec.encode_prompt(p.text, p.columns), [answer(p, text) for text in ANSWERS]) for p in prompts]
    tokens = sum(len(completion) for _, group in groups for completion in group)
    return experience(groups, prompts=tuple(prompts), logprobs=[-1.0] * tokens)


def test_the_file_is_a_dataset_of_the_same_tokens(chat_model: Path, tmp_path: Path) -> None:
    sampled = sampled_chat(TextCodec(ModelConfig(path=str(chat_model))))
    path = tmp_path / "pairs.parquet"
    write(path, chat_model, sampled, [1, 0] * 3)
    rows = pq.read_table(path).to_pylist()
    assert rows[0]["chosen"] == [{"role": "assistant", "content": ANSWERS[0]}]
    examples = read_examples(str(path), algorithm="dpo")
    assert [example.scores for example in examples] == [(1.0, 0.0)] * 3
    loaded = Encoder(ModelConfig(path=str(chat_model)), max_length=1024).encode(examples)
    assert [tokens.tolist() for tokens in loaded.prompt_tokens] == [tokens.tolist() for tokens in sampled.prompt_tokens]
    assert [tokens.tolist() for tokens in loaded.completions] == [tokens.tolist() for tokens in sampled.completions]


def test_texts_and_conversations_are_two_files(chat_model: Path, tmp_path: Path) -> None:
    prompts = (Prompt(id="p:0", text="what"), PROMPTS[0])
    path = tmp_path / "pairs.parquet"
    write(path, chat_model, sampled_chat(TextCodec(ModelConfig(path=str(chat_model))), prompts), [1, 0] * 2)
    (conversation,), (text,) = (pq.read_table(p).to_pylist() for p in (path, tmp_path / f"pairs{TEXTS}.parquet"))
    assert conversation["prompt"] == USER
    assert (text["prompt"], text["chosen"], text["tools"]) == ("what", ANSWERS[0], None)
    for file in (path, tmp_path / f"pairs{TEXTS}.parquet"):
        assert len(read_examples(str(file), algorithm="dpo")) == 1


def test_datasets_reads_the_file_as_trl_s_preference_format(
    chat_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HOME", str(tmp_path / "cache"))
    from datasets import load_dataset

    path = tmp_path / "pairs.parquet"
    write(path, chat_model, sampled_chat(TextCodec(ModelConfig(path=str(chat_model))), PROMPTS[:1]), [1, 0])
    (row,) = load_dataset("parquet", data_files=str(path), split="train", cache_dir=str(tmp_path / "cache"))
    assert row["prompt"] == USER
    assert [row[side] for side in ("chosen", "rejected")] == [[{"role": "assistant", "content": a}] for a in ANSWERS]
