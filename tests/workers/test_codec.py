"""Encoding of rows with the common kinds of tokenizers and chat templates."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from templates import CHATML, GLM_4, LLAMA_3, MARKERS, MISTRAL, PHI_3, QWEN_3, R1
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from configs.quickstart.tiny import bpe_tokenizer
from workers.config import ModelConfig
from workers.engines.base import ModelError
from workers.engines.hf_text import TextCodec

ROOT = Path(__file__).parent.parent.parent


def user(text: str) -> dict[str, Any]:
    return {"role": "user", "content": text}


def assistant(text: str, **more: Any) -> dict[str, Any]:
    return {"role": "assistant", "content": text, **more}


def codec(directory: Path, template: str | None = None, *, special: str = "<s> $A", **settings: Any) -> TextCodec:
    """Make a byte-level tokenizer with the markers of every template. `special`: its pattern of added tokens."""
    tokenizer = bpe_tokenizer(["what is two and two", "it is four", "\n\n \n\n"], 300, template)
    tokenizer.add_special_tokens({"extra_special_tokens": list(MARKERS)})
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single=special, special_tokens=[("<s>", 0), ("</s>", 1)]
    )
    tokenizer.save_pretrained(directory)
    return TextCodec(ModelConfig(path=str(directory), **settings))


def texts(codec: TextCodec, prompt: Any, *completions: Any, **columns: Any) -> list[str]:
    """Return prompt and completions, decoded from their tokens."""
    row = codec.encode_row(prompt, completions, columns)
    return [codec.tokenizer.decode(tokens) for tokens in (row.prompt, *row.completions)]


# ------------------------------------------------------------------------------------------------ starts and ends


def test_a_tokenizer_that_appends_an_end_ends_no_prompt(tmp_path: Path) -> None:
    text_codec = codec(tmp_path, special="<s> $A </s>")
    assert texts(text_codec, "what", "four") == ["<s>what", "four</s>"]
    assert texts(text_codec, "", "what") == ["<s>", "what</s>"]
    assert texts(text_codec, "is</s>what", "four") == ["<s>is</s>what", "four</s>"]  # those in the text remain


def test_one_start_and_one_end(tmp_path: Path) -> None:
    text_codec = codec(tmp_path)
    for prompt, completion in (
        ("what", "four"),
        ("<s>what", "four"),
        ("what", "four</s>"),
        ("<s>what", "four</s>"),
    ):
        assert texts(text_codec, prompt, completion) == ["<s>what", "four</s>"]
    assert texts(text_codec, "", "<s>what</s>") == ["<s>", "what</s>"]  # an already rendered text
    assert texts(text_codec, "what", "four</s>\n") == ["<s>what", "four</s>\n"]


def test_whatever_stops_a_completion_ends_it(tmp_path: Path) -> None:
    codec(tmp_path)
    end = TextCodec(ModelConfig(path=str(tmp_path))).tokenizer.convert_tokens_to_ids("<|im_end|>")
    (tmp_path / "generation_config.json").write_text(json.dumps({"eos_token_id": [1, end]}))
    text_codec = TextCodec(ModelConfig(path=str(tmp_path)))
    assert texts(text_codec, "what", "yes<|im_end|>") == ["<s>what", "yes<|im_end|>"]
    assert texts(text_codec, "what", "yes") == ["<s>what", "yes</s>"]


def spaced(directory: Path, kind: str) -> TextCodec:
    """Make a tokenizer that puts a space before every text, in one of the known ways."""
    vocabulary = {token: i for i, token in enumerate(["<unk>", "<s>", "</s>", "<0x0A>", "▁", *"0123456789+=ab", "▁4"])}
    backend = Tokenizer(models.BPE(vocabulary, [("▁", "4")], unk_token="<unk>", byte_fallback=True))
    if kind == "normalizer":
        backend.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    else:
        backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=kind, split=False)
    strip = decoders.Strip(" ", 1, 0)
    replace = decoders.Replace("▁", " ")
    backend.decoder = decoders.Sequence([replace, decoders.ByteFallback(), decoders.Fuse(), strip])
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<s>", eos_token="</s>", unk_token="<unk>")
    tokenizer.save_pretrained(directory)
    return TextCodec(ModelConfig(path=str(directory)))


@pytest.mark.parametrize("kind", ["normalizer", "first", "always"])
def test_a_completion_gets_no_space_that_it_has_not(kind: str, tmp_path: Path) -> None:
    text_codec = spaced(tmp_path, kind)
    for prompt, completion in (("2+2=", "4"), ("2+2=", " 4"), ("2+2= ", "4"), ("2+2=", "4 4")):
        row = text_codec.encode_row(prompt, [completion])
        assert text_codec.tokenizer.decode(row.prompt + row.completions[0]) == f"{prompt}{completion}</s>"
    assert text_codec.tokenizer.decode(text_codec.encode_row("", ["4"]).completions[0]) == "4</s>"
    (four,) = text_codec.tokenizer.convert_tokens_to_ids(["▁4"])
    assert text_codec.encode_row("", ["4"]).completions == [[four, 2]]  # a text without a prompt gets the space


# ------------------------------------------------------------------------------------------------ turns


@pytest.mark.parametrize(
    ("template", "end"),
    [(CHATML, "<|im_end|>"), (R1, "<|end_of_sentence|>"), (PHI_3, "<|end|>"), (GLM_4, "<|user|>")],
)
def test_the_end_of_a_turn_stops_an_answer(template: str, end: str, tmp_path: Path) -> None:
    """Check a tokenizer whose own end is </s>, like that of a base model with an added template."""
    text_codec = codec(tmp_path, template)
    number = text_codec.tokenizer.convert_tokens_to_ids(end)
    assert text_codec.stop_tokens(conversational=True) == sorted([1, number])
    assert text_codec.stop_tokens(conversational=False) == [1]


def test_templates_without_an_end_of_their_own(tmp_path: Path) -> None:
    assert codec(tmp_path, "{% for m in messages %}{{ m.content }}\n{% endfor %}").stop_tokens(conversational=True) == [
        1
    ]
    assert codec(tmp_path, MISTRAL).stop_tokens(conversational=True) == [1]
    assert codec(tmp_path).stop_tokens(conversational=True) == [1]


def test_an_answer_that_merges_with_the_generation_prompt(tmp_path: Path) -> None:
    text_codec = codec(tmp_path, CHATML)
    text_codec.tokenizer.add_tokens(["\n\n"])  # a token of Qwen and Llama
    row = text_codec.encode_row([user("what")], [[assistant("\nfour")], [assistant("five")]])
    assert row.moved
    assert [text_codec.tokenizer.decode(t) for t in (row.prompt, *row.completions)] == [
        "<|im_start|>user\nwhat<|im_end|>\n<|im_start|>assistant",
        "\n\nfour<|im_end|>\n",
        "\nfive<|im_end|>\n",
    ]
    assert not text_codec.encode_row([user("what")], [[assistant("four")]]).moved


def test_thinking_templates(tmp_path: Path) -> None:
    text_codec = codec(tmp_path, R1)
    row = text_codec.encode_row([user("what"), assistant("<think>a</think>b"), user("and")], [[assistant("four")]])
    assert (row.moved, row.left_out) == (True, False)
    assert texts(text_codec, [user("what")], [assistant("four")]) == [
        "<s><|User|>what<|Assistant|>",
        "four<|end_of_sentence|>",
    ]
    assert text_codec.encode_row([user("what")], [[assistant("<think>a</think>b")]]).left_out
    assert not codec(tmp_path, CHATML).encode_row([user("what")], [[assistant("<think>a</think>b")]]).left_out
    plain = codec(tmp_path, QWEN_3)
    assert texts(plain, [user("what")], [assistant("four")])[1] == "<think>\n\n</think>\n\nfour<|im_end|>\n"


def test_an_end_after_the_whole_conversation_is_no_rewriting(tmp_path: Path) -> None:
    text_codec = codec(tmp_path, PHI_3)
    assert texts(text_codec, [user("what")], [assistant("four")]) == [
        "<|user|>\nwhat<|end|>\n<|assistant|>\n",
        "four<|end|>\n</s>",
    ]


# ----------------------------------------------------------------------------------------- tools and arguments of a row

TOOL = {"type": "function", "function": {"name": "add"}}


def test_tools_and_arguments_of_a_row_reach_the_template(tmp_path: Path) -> None:
    template = "{{ tools | tojson if tools else '' }}{{ mood }}{% for m in messages %}{{ m.content }}</s>{% endfor %}"
    text_codec = codec(tmp_path, template, chat_template_kwargs={"mood": "calm"})
    prompt, answer = [user("what")], [assistant("four")]
    assert texts(text_codec, prompt, answer) == ["calmwhat</s>", "four</s>"]
    written = '[{"type": "function", "function": {"name": "add"}}]'
    for tools in ([TOOL], json.dumps([TOOL])):
        assert texts(text_codec, prompt, answer, tools=tools) == [f"{written}calmwhat</s>", "four</s>"]
    assert texts(text_codec, prompt, answer, tools=[], chat_template_kwargs={"mood": "loud"})[0] == "loudwhat</s>"
    assert texts(text_codec, prompt, answer, tools=None, chat_template_kwargs='{"mood": "loud"}')[0] == "loudwhat</s>"
    assert texts(text_codec, prompt, answer, chat_template_kwargs={"mood": None})[0] == "calmwhat</s>"
    assert (
        text_codec.encode_prompt(prompt, {"tools": [TOOL]})
        == text_codec.encode_row(prompt, [answer], {"tools": [TOOL]}).prompt
    )


@pytest.mark.parametrize(
    ("columns", "why"),
    [
        ({"tools": ["add"]}, "`tools` is not a list of JSON schemas"),
        ({"tools": "add"}, "`tools` is text but not JSON"),
        ({"tools": {"name": "add"}}, "`tools` is not a list"),
        ({"chat_template_kwargs": [1]}, "`chat_template_kwargs` is not an object"),
        ({"chat_template_kwargs": {"add_generation_prompt": False}}, "which a row cannot set"),
    ],
)
def test_invalid_tools_and_arguments_of_a_row(columns: dict[str, Any], why: str, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=why):
        codec(tmp_path, CHATML).encode_prompt([user("what")], columns)


def call(arguments: Any, **more: Any) -> dict[str, Any]:
    return {"role": "assistant", "tool_calls": [{"function": {"name": "add", "arguments": arguments}}], **more}


@pytest.mark.parametrize("given", [{"a": 1}, '{"a": 1}'], ids=["object", "JSON"])
@pytest.mark.parametrize("content", [{}, {"content": None}, {"content": ""}], ids=["missing", "null", "empty"])
@pytest.mark.parametrize(
    "template",
    [
        "{{ m.tool_calls[0].function.arguments | tojson }}",  # Qwen, Llama: an object
        "{{ '' + m.tool_calls[0].function.arguments }}",  # DeepSeek: JSON
        "{{ m.content }}{{ m.tool_calls[0].function.arguments | tojson }}",  # null would be the word None
        "{{ m.content + '' }}{{ m.tool_calls[0].function.arguments | tojson }}",
        "{% if not m.content %}{{ m.tool_calls[0].function.arguments | tojson }}{% endif %}",
    ],
)
def test_a_tool_call_in_the_form_that_its_template_wants(
    template: str, content: dict[str, Any], given: Any, tmp_path: Path
) -> None:
    wrapped = (
        "{% for m in messages %}{% if m.tool_calls %}" + template + "{% else %}{{ m.content }}{% endif %}</s>"
        "{% endfor %}"
    )
    text_codec = codec(tmp_path, wrapped)
    assert texts(text_codec, [user("what")], [call(given, **content)]) == ["what</s>", '{"a": 1}</s>']


def test_a_tool_call_that_a_template_leaves_out_is_refused(tmp_path: Path) -> None:
    text_codec = codec(tmp_path, CHATML)
    for prompt, answer in (
        ([user("what")], [call({"a": 1})]),
        ([user("what"), call({"a": 1}), {"role": "tool", "content": "2"}], [assistant("2")]),
    ):
        with pytest.raises(ModelError, match="the chat template leaves out the tool calls of a message"):
            text_codec.encode_row(prompt, [answer])


# ----------------------------------------------------------------------------------------- template dates, and decoding


def test_a_template_gets_the_date_on_which_the_run_began(tmp_path: Path) -> None:
    text_codec = codec(tmp_path, LLAMA_3, template_date="2024-02-29T23:59:59")
    assert "Today Date: 29 Feb 2024" in texts(text_codec, [user("what")], [assistant("four")])[0]
    own = {"chat_template_kwargs": {"date_string": "1 May"}}
    assert "Today Date: 1 May" in texts(text_codec, [user("what")], [assistant("four")], **own)[0]


def test_special_tokens_may_stay_in_what_rewards_see(tmp_path: Path) -> None:
    text_codec = codec(tmp_path, CHATML)
    sampled = [text_codec.tokenizer(text, add_special_tokens=False)["input_ids"] for text in (
        "<think>two</think>four<|im_end|>", "<think>two</think>four</s>", "<think>two",
    )]  # fmt: skip
    assert text_codec.decode_batch(sampled) == ["twofour", "twofour", "two"]
    kept = ["<think>two</think>four", "<think>two</think>four", "<think>two"]
    assert text_codec.decode_batch(sampled, skip_special_tokens=False) == kept


def test_stop_tokens_of_a_model_of_the_hub(tmp_path: Path) -> None:
    """Read the stop tokens from the local Hub cache."""
    snapshot = tmp_path / "models--someone--model" / "snapshots" / ("0" * 40)
    snapshot.mkdir(parents=True)
    (snapshot / "generation_config.json").write_text('{"eos_token_id": [7, 9]}')
    (snapshot.parent.parent / "refs").mkdir()
    (snapshot.parent.parent / "refs" / "main").write_text("0" * 40)
    script = (
        "from workers.engines.hf_text import stop_token_ids as text_codec\n"
        "print(text_codec('someone/model', 1), text_codec('someone/other', 1))"
    )
    environment = {**os.environ, "HF_HUB_CACHE": str(tmp_path), "HF_HUB_OFFLINE": "1", "PYTHONPATH": str(ROOT)}
    found = subprocess.run(
        [sys.executable, "-c", script], env=environment, capture_output=True, text=True, check=True, timeout=120
    )
    assert found.stdout == "[1, 7, 9] [1]\n"
