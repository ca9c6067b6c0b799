"""Encoding and decoding of strings and conversations."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tokenizers import processors

from configs.quickstart.tiny import bpe_tokenizer, character_tokenizer
from workers.config import ModelConfig
from workers.engines.base import ModelError
from workers.engines.hf_models import max_positions
from workers.engines.hf_text import TextCodec, stop_token_ids

CONVERSATION = [{"role": "user", "content": "ab"}]
ANSWER = [{"role": "assistant", "content": "b"}]


def save_tokenizer(directory: Path, template: str | None = None, alphabet: str = "abcdefgh>:") -> TextCodec:
    tokenizer = character_tokenizer(alphabet)
    tokenizer.chat_template = template
    tokenizer.save_pretrained(directory)
    return TextCodec(ModelConfig(path=str(directory)))


def test_plain_text(tmp_path: Path) -> None:
    codec = save_tokenizer(tmp_path)  # ids from 3: a 3, b 4, …, > 11
    assert codec.encode_prompt("ba>") == [4, 3, 11]
    assert codec.encode_completion("ba>", "ab") == [3, 4, 1]
    assert codec.decode([3, 4, 1]) == "ab"
    assert codec.decode_batch([[3], [4, 4, 1, 0, 0]]) == ["a", "bb"]
    assert codec.decode_batch([]) == []


def test_a_prompt_gets_the_start_token_and_a_completion_the_end(tmp_path: Path) -> None:
    tokenizer = bpe_tokenizer(["ab"], 270)
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", 0)]
    )
    tokenizer.save_pretrained(tmp_path)
    codec = TextCodec(ModelConfig(path=str(tmp_path)))
    (ab,) = tokenizer("ab", add_special_tokens=False)["input_ids"]
    assert codec.encode_prompt("ab") == [0, ab]
    assert codec.encode_completion("ab", "ab") == [ab, 1]


def test_a_conversation_goes_through_the_chat_template(tmp_path: Path) -> None:
    template = (
        "{% for m in messages %}{{ 'c' if m.role == 'user' else 'd' }}:{{ m.content }}>{% endfor %}"
        "{% if add_generation_prompt %}d:{% endif %}"
    )
    codec = save_tokenizer(tmp_path, template)
    assert codec.encode_prompt(CONVERSATION) == [5, 12, 3, 4, 11, 6, 12]  # c:ab>d:
    assert codec.encode_completion(CONVERSATION, ANSWER) == [4, 11]  # b>


def test_template_arguments_reach_the_template(tmp_path: Path) -> None:
    save_tokenizer(tmp_path, "{{ 'a' if loud else 'b' }}")
    codec = TextCodec(ModelConfig(path=str(tmp_path), chat_template_kwargs={"loud": True}))
    assert codec.encode_prompt(CONVERSATION) == [3]


def test_an_answer_begins_where_it_differs_from_the_generation_prompt(tmp_path: Path) -> None:
    # Prompt: ab>d:  Conversation: ab>b>  They share ab>, and the rest is the answer, as in TRL.
    template = "{% for m in messages %}{{ m.content }}>{% endfor %}{% if add_generation_prompt %}d:{% endif %}"
    codec = save_tokenizer(tmp_path, template)
    encoded = codec.encode_row(CONVERSATION, [ANSWER])
    assert (encoded.prompt, encoded.completions, encoded.moved) == ([3, 4, 11], [[4, 11]], True)
    assert codec.encode_prompt(CONVERSATION) == [3, 4, 11, 6, 12]  # sampling uses the whole prompt
    # With two answers the prompt is the beginning that all three texts share.
    both = codec.encode_row(CONVERSATION, [ANSWER, [{"role": "assistant", "content": "d:a"}]])
    assert (both.prompt, both.completions) == ([3, 4, 11], [[4, 11], [6, 12, 3, 11]])


@pytest.mark.parametrize(
    "template",
    [
        "{{ 'abc'[messages|length - 1] }}{% for m in messages %}{{ m.content }}>{% endfor %}",
        "{% for m in messages[-1:] %}{{ m.content }}>{% endfor %}",
        "{% for m in messages %}{{ m.content if loop.last else 'd' }}>{% endfor %}",
    ],
)
def test_a_template_that_does_not_continue_its_prompt_is_refused(template: str, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="does not render a conversation as a continuation of its prompt"):
        save_tokenizer(tmp_path, template).encode_completion(CONVERSATION, ANSWER)


def test_a_template_that_writes_no_answer_is_refused(tmp_path: Path) -> None:
    template = "{% for m in messages if m.role == 'user' %}{{ m.content }}>{% endfor %}"
    with pytest.raises(ModelError, match="renders nothing of an answer"):
        save_tokenizer(tmp_path, template).encode_completion(CONVERSATION, ANSWER)


def test_conversations_need_a_template(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="no chat template; add chat_template"):
        save_tokenizer(tmp_path).encode_prompt(CONVERSATION)


def test_prompt_and_completion_are_of_one_kind(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="both be strings or both be conversations"):
        save_tokenizer(tmp_path).encode_completion("ab", ANSWER)


def test_a_tokenizer_needs_an_end_of_sequence(tmp_path: Path) -> None:
    tokenizer = character_tokenizer("ab")
    tokenizer.eos_token = None
    tokenizer.save_pretrained(tmp_path)
    with pytest.raises(ModelError, match="no end-of-sequence token"):
        TextCodec(ModelConfig(path=str(tmp_path)))


def test_every_token_that_ends_a_completion(tmp_path: Path, qwen2: Path) -> None:
    assert stop_token_ids(str(tmp_path), 1) == [1]
    (tmp_path / "generation_config.json").write_text(json.dumps({"eos_token_id": [7, 1, 5]}))
    assert stop_token_ids(str(tmp_path), 1) == [1, 5, 7]
    (tmp_path / "generation_config.json").write_text(json.dumps({"eos_token_id": 9}))
    assert stop_token_ids(str(tmp_path), 1) == [1, 9]
    assert max_positions(str(qwen2)) == 64
