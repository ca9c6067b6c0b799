"""Chat templates without transformers: the same text and tokens as by transformers, from the same files."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from templates import CHATML, GEMMA, LLAMA_3, MARKERS, MISTRAL, STYLES

from configs.quickstart.tiny import bpe_tokenizer
from orchestrator.data.template import ChatTemplate
from orchestrator.data.tokens import TokenCounter
from workers.config import ModelConfig
from workers.conversation import TextError
from workers.engines.hf_text import TextCodec

TOOL = {"type": "function", "function": {"name": "add", "parameters": {"type": "object", "properties": {"a<b": {}}}}}
CALL = {"role": "assistant", "tool_calls": [{"type": "function", "function": {"name": "add", "arguments": {"a": 1}}}]}


def user(text: str) -> dict[str, Any]:
    return {"role": "user", "content": text}


def assistant(text: str) -> dict[str, Any]:
    return {"role": "assistant", "content": text}


def system(text: str) -> dict[str, Any]:
    return {"role": "system", "content": text}


CONVERSATIONS: list[list[dict[str, Any]]] = [
    [user(" hü & <b> ")],
    [user("what"), assistant("<think>hm</think>\n\nfour"), user("and?")],
    [system(" be brief "), user("what")],
    [user("one"), user("two")],
    [user("skip"), assistant("\nfour")],
    [user("add"), CALL, {"role": "tool", "content": "2"}],
]
ARGUMENTS: list[dict[str, Any]] = [
    {},
    {"tools": [TOOL]},
    {"documents": [{"title": "t", "text": "ü"}], "enable_thinking": False},
    {"strftime_now": lambda form: f"<{form}>", "bos_token": "B"},
]


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("tokenizer")
    tokenizer = bpe_tokenizer(["what is two and two", "it is four"], 300)
    tokenizer.add_special_tokens({"extra_special_tokens": list(MARKERS)})
    tokenizer.save_pretrained(directory)
    return directory


def result(render: Callable[[], str]) -> str | Exception:
    try:
        return render()
    except Exception as error:
        return error


@pytest.mark.parametrize("style", STYLES)
def test_templates_write_what_transformers_has_them_write(style: str, directory: Path) -> None:
    (directory / "chat_template.jinja").write_text(STYLES[style])
    theirs, ours = TextCodec(ModelConfig(path=str(directory))), TokenCounter.of(directory)
    assert ours is not None
    written = 0
    for messages in CONVERSATIONS:
        for arguments in ARGUMENTS:
            for generation in (True, False):
                options = {"add_generation_prompt": generation, **arguments}
                expected = result(partial(theirs.tokenizer.apply_chat_template, messages, tokenize=False, **options))
                found = result(partial(ours.tokenizer.render, messages, **options))
                if isinstance(expected, Exception):
                    assert isinstance(found, TextError)
                    assert str(expected) in found.what
                    continue
                written += 1
                assert found == expected
                tokens = theirs.tokenizer(expected, add_special_tokens=False)["input_ids"]
                assert ours.tokenizer.encode(expected) == tokens
                assert ours.tokenizer.decode(tokens) == expected
    assert written >= 8
    assert ours.codec.turn_end == theirs._codec.turn_end


@pytest.mark.parametrize("style", STYLES)
def test_rows_become_the_same_tokens_as_in_the_actors(style: str, directory: Path) -> None:
    (directory / "chat_template.jinja").write_text(STYLES[style])
    theirs, ours = TextCodec(ModelConfig(path=str(directory))), TokenCounter.of(directory)
    assert ours is not None
    for answer in ("four", "\nfour", "<think>hm</think>four"):
        prompt, completions = [user("what")], [[assistant(answer)], [assistant("five")]]
        assert ours.codec.row(prompt, completions) == theirs.encode_row(prompt, completions)
    for text in ("what", "<s>what", "", "what</s>"):
        assert ours.codec.row(text, ["four", "four</s>"]) == theirs.encode_row(text, ["four", "four</s>"])
        assert ours.codec.encode_prompt(text) == theirs.encode_prompt(text)


def save(directory: Path, **settings: Any) -> Path:
    (directory / "tokenizer_config.json").write_text(json.dumps(settings))
    return directory


def write(template: ChatTemplate | None, *messages: dict[str, Any], **arguments: Any) -> str:
    assert template is not None
    return template.render(messages, add_generation_prompt=False, **arguments)


def test_where_a_template_is_found(tmp_path: Path) -> None:
    assert ChatTemplate.of(tmp_path) is None
    several = [{"name": "default", "template": "plain"}, {"name": "tool_use", "template": "tools"}]
    found = ChatTemplate.of(save(tmp_path, chat_template=several))
    assert (write(found, user("a")), write(found, user("a"), tools=[TOOL])) == ("plain", "tools")
    assert write(ChatTemplate.of(save(tmp_path, chat_template="{{ eos_token }}", eos_token={"content": "E"}))) == "E"
    (tmp_path / "chat_template.jinja").write_text("a file comes first")
    assert write(ChatTemplate.of(tmp_path), user("a")) == "a file comes first"
    (tmp_path / "additional_chat_templates").mkdir()
    (tmp_path / "additional_chat_templates" / "tool_use.jinja").write_text("another file")
    assert write(ChatTemplate.of(tmp_path), user("a"), tools=[TOOL]) == "another file"
    (tmp_path / "chat_template.jinja").unlink()
    with pytest.raises(TextError, match="none of several is called default: tool_use"):
        write(ChatTemplate.of(tmp_path), user("a"))


def test_special_tokens_of_older_directories(tmp_path: Path) -> None:
    (tmp_path / "special_tokens_map.json").write_text(json.dumps({"eos_token": {"content": "<end>"}}))
    assert write(ChatTemplate.of(save(tmp_path, chat_template="{{ eos_token }}", eos_token="<old>"))) == "<end>"
    newer = save(tmp_path, chat_template="{{ eos_token }}", eos_token="<new>", added_tokens_decoder={})
    assert write(ChatTemplate.of(newer)) == "<new>"


def test_errors_of_a_template_keep_its_message(tmp_path: Path) -> None:
    for template, messages, why in (
        (GEMMA, [system("a"), user("b")], "System role not supported"),
        (MISTRAL, [user("a"), user("b")], "Conversation roles must alternate"),
        (CHATML, [{"role": "user"}], "no attribute .content."),
        ("{{ ''.__class__.__mro__ }}", [user("a")], "unsafe"),
        ("{% for %}", [user("a")], "Expected"),
        (LLAMA_3, [], "no element 0"),
    ):
        with pytest.raises(TextError, match="the chat template refuses it: .*" + why):
            write(ChatTemplate.of(save(tmp_path, chat_template=template)), *messages)
