"""A conversation as the text that a chat template makes of it, for every template the same rules.

messages ──forms──► as this template wants them ──render──► text     columns of the row ──arguments──► the template's
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, TypeAlias

Messages: TypeAlias = Sequence[Mapping[str, Any]]
Render: TypeAlias = Callable[..., str]
"""`render(messages, add_generation_prompt=…, **arguments)`; raises TextError."""

OURS = ("messages", "add_generation_prompt", "continue_final_message", "chat_template", "tokenize", "return_dict")
MARK = "zqxjkvzqxjkv"  # an answer that no template writes of its own accord


class TextError(ValueError):
    """A row cannot become tokens: what is wrong with it, and the way out."""

    def __init__(self, what: str, fix: str) -> None:
        super().__init__(f"{what}; {fix}")
        self.what, self.fix = what, fix


def unencodable(error: Exception) -> TextError:
    """What a tokenizer said against a text."""
    why = str(error).strip() or type(error).__name__
    return TextError(f"the tokenizer cannot encode it: {why}", "mend or remove the row, or use another tokenizer")


def refused(error: Exception) -> TextError:
    """What a chat template said against a conversation."""
    why = str(error).strip() or type(error).__name__
    return TextError(f"the chat template refuses it: {why}", "mend or remove the row, or use another chat template")


def arguments_of(columns: Mapping[str, Any]) -> dict[str, Any]:
    """What a row's `tools` and `chat_template_kwargs` give the template, as in TRL's datasets. An empty list of tools
    is none, and a null is not given: columnar files fill them in."""
    own = _read(columns.get("chat_template_kwargs"), "chat_template_kwargs", dict) or {}
    taken = sorted(set(own) & {*OURS, "tools"})
    if taken:
        raise TextError(f"`chat_template_kwargs` gives `{taken[0]}`, which is not the row's to give", "remove it")
    tools = _read(columns.get("tools"), "tools", list)
    if tools and not all(isinstance(tool, Mapping) for tool in tools):
        raise TextError("`tools` is not a list of JSON schemas", "write each tool as an object with its schema")
    return {**{k: v for k, v in own.items() if v is not None}, **({"tools": tools} if tools else {})}


def _read(value: Any, name: str, kind: type) -> Any:
    """A column as it is, or written as JSON, as files without nested types have it."""
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except (ValueError, RecursionError):
            raise TextError(f"`{name}` is text that is no JSON", f"write it as {_WORDS[kind]}") from None
    if value is not None and not isinstance(value, kind):
        raise TextError(f"`{name}` is not {_WORDS[kind]}", f"write it as {_WORDS[kind]}")
    return value


_WORDS: dict[Any, str] = {dict: "an object", list: "a list"}


def write(render: Render, messages: Messages, arguments: Mapping[str, Any], *, add_generation_prompt: bool) -> str:
    """The text of a conversation.

    Templates differ in how they want a tool call: its arguments as an object or as JSON, the missing `content` beside
    it as null or as empty text. The first form that the template takes is the one. A template that writes null as the
    word None does not take it.

    Raises:
        TextError: when the template refuses the conversation, or leaves out the tool calls in it.
    """

    def tried(form: Messages) -> str | TextError:
        try:
            return render(form, add_generation_prompt=add_generation_prompt, **arguments)
        except TextError as error:
            return error

    texts = [tried(form) for form in forms(messages)]
    told = [text for text in texts if isinstance(text, str)]
    if not told:
        assert isinstance(texts[0], TextError)
        raise texts[0]
    text = min(told, key=lambda text: text.count("None"))  # the first of them
    if any(message.get("tool_calls") for message in messages) and text == tried(_without_calls(messages)):
        fix = "use a template that writes `tool_calls`, or remove these rows"
        raise TextError("the chat template leaves out the tool calls of a message", fix)
    return text


def forms(messages: Messages) -> Iterator[list[dict[str, Any]]]:
    """The same messages in every form that a template may want; one where no tool is called."""
    calls = any(message.get("tool_calls") for message in messages)
    for parse in (True, False) if calls else (True,):
        for missing in (None, "") if any(message.get("content") is None for message in messages) else (None,):
            yield [_form(message, parse=parse, missing=missing) for message in messages]


def _form(message: Mapping[str, Any], *, parse: bool, missing: str | None) -> dict[str, Any]:
    told = {**message, "content": missing if message.get("content") is None else message["content"]}
    if calls := message.get("tool_calls"):
        told["tool_calls"] = [_call(call, parse=parse) for call in calls]
    return told


def _call(call: Any, *, parse: bool) -> Any:
    if not isinstance(call, Mapping):
        return call
    if isinstance(call.get("function"), Mapping):
        return {**call, "function": _call(call["function"], parse=parse)}
    given = call.get("arguments")
    if parse and isinstance(given, str):
        try:
            given = json.loads(given)
        except (ValueError, RecursionError):
            return call
    elif not parse and isinstance(given, Mapping):
        given = json.dumps(given, ensure_ascii=False)
    return {**call, "arguments": given} if "arguments" in call else call


def _without_calls(messages: Messages) -> list[dict[str, Any]]:
    kept = [{key: value for key, value in m.items() if key != "tool_calls"} for m in messages]
    return [{**m, "content": m.get("content") or ""} for m in kept]


def after_an_answer(render: Render) -> tuple[str, str]:
    """What a template writes after an answer: at the end of a conversation, and before the next turn. Empty where it
    takes no such conversation."""
    question, answer = {"role": "user", "content": "a"}, {"role": "assistant", "content": MARK}
    tails = []
    for conversation in ([question, answer], [question, answer, question]):
        try:
            text = render(conversation, add_generation_prompt=False)
        except TextError:
            text = ""
        tails.append(text.rpartition(MARK)[2] if MARK in text else "")
    return tails[0], tails[1]


def as_text(messages: str | Messages) -> str:
    """A conversation as a person reads it: `user: 2+2=`, a line each; a tool call as JSON."""
    if isinstance(messages, str):
        return messages
    return "\n".join(f"{message.get('role')}: {said(message)}" for message in messages)


def said(message: Mapping[str, Any]) -> str:
    """What a message says: its content, and the calls beside it."""
    calls = message.get("tool_calls")
    parts = [message.get("content") or "", json.dumps(calls, ensure_ascii=False, default=str) if calls else ""]
    return "\n".join(str(part) for part in parts if part)
