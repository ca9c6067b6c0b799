"""Rendering of conversations by chat templates.

    messages ──forms──► messages in the form that the template accepts ──render──► text

Columns of a row (`tools`, `chat_template_kwargs`) become arguments of the template.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, TypeAlias

Messages: TypeAlias = Sequence[Mapping[str, Any]]
Render: TypeAlias = Callable[..., str]
"""Function `render(messages, add_generation_prompt=…, **arguments)`, which raises TextError."""

RESERVED = ("messages", "add_generation_prompt", "continue_final_message", "chat_template", "tokenize", "return_dict")
MARK = "zqxjkvzqxjkv"  # an answer that no template contains


class TextError(ValueError):
    """A row cannot be encoded. `what` is the problem, `fix` the remedy."""

    def __init__(self, what: str, fix: str) -> None:
        super().__init__(f"{what}; {fix}")
        self.what, self.fix = what, fix


def unencodable(error: Exception) -> TextError:
    """Return the TextError for an exception of a tokenizer."""
    why = str(error).strip() or type(error).__name__
    return TextError(f"the tokenizer cannot encode it: {why}", "fix or remove the row, or use another tokenizer")


def refused(error: Exception) -> TextError:
    """Return the TextError for an exception of a chat template."""
    why = str(error).strip() or type(error).__name__
    return TextError(f"the chat template refuses it: {why}", "fix or remove the row, or use another chat template")


def arguments_of(columns: Mapping[str, Any]) -> dict[str, Any]:
    """Return the template arguments of a row: its `tools` and `chat_template_kwargs`, as in TRL's datasets.

    Nulls and empty lists of tools are left out, because columnar files fill missing values with them. Raises TextError.
    """
    own = _read(columns.get("chat_template_kwargs"), "chat_template_kwargs", dict) or {}
    taken = sorted(set(own) & {*RESERVED, "tools"})
    if taken:
        raise TextError(f"`chat_template_kwargs` sets `{taken[0]}`, which a row cannot set", "remove it")
    tools = _read(columns.get("tools"), "tools", list)
    if tools and not all(isinstance(tool, Mapping) for tool in tools):
        raise TextError("`tools` is not a list of JSON schemas", "write each tool as an object with its schema")
    return {**{k: v for k, v in own.items() if v is not None}, **({"tools": tools} if tools else {})}


def _read(value: Any, name: str, kind: type) -> Any:
    """Return the value of a column. Text is parsed as JSON, for files without nested types."""
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except (ValueError, RecursionError):
            raise TextError(f"`{name}` is text but not JSON", f"write it as {_WORDS[kind]}") from None
    if value is not None and not isinstance(value, kind):
        raise TextError(f"`{name}` is not {_WORDS[kind]}", f"write it as {_WORDS[kind]}")
    return value


_WORDS: dict[Any, str] = {dict: "an object", list: "a list"}


def write(render: Render, messages: Messages, arguments: Mapping[str, Any], *, add_generation_prompt: bool) -> str:
    """Render a conversation as text.

    Templates differ in how they expect a tool call: its arguments as an object or as JSON, its missing `content` as
    null or as an empty string. The first form that the template accepts is used. A form that renders null as the word
    None is not accepted.

    Raises:
        TextError: the template refuses the conversation, or leaves out its tool calls.
    """

    def try_form(form: Messages) -> str | TextError:
        try:
            return render(form, add_generation_prompt=add_generation_prompt, **arguments)
        except TextError as error:
            return error

    results = [try_form(form) for form in forms(messages)]
    texts = [text for text in results if isinstance(text, str)]
    if not texts:
        assert isinstance(results[0], TextError)
        raise results[0]
    text = min(texts, key=lambda text: text.count("None"))  # the first of the minima
    if any(message.get("tool_calls") for message in messages) and text == try_form(_without_calls(messages)):
        fix = "use a template that renders `tool_calls`, or remove these rows"
        raise TextError("the chat template leaves out the tool calls of a message", fix)
    return text


def forms(messages: Messages) -> Iterator[list[dict[str, Any]]]:
    """Yield the messages in every form that a template may expect: one form if no tool is called."""
    calls = any(message.get("tool_calls") for message in messages)
    for parse in (True, False) if calls else (True,):
        for missing in (None, "") if any(message.get("content") is None for message in messages) else (None,):
            yield [_form(message, parse=parse, missing=missing) for message in messages]


def _form(message: Mapping[str, Any], *, parse: bool, missing: str | None) -> dict[str, Any]:
    form = {**message, "content": missing if message.get("content") is None else message["content"]}
    if calls := message.get("tool_calls"):
        form["tool_calls"] = [_call(call, parse=parse) for call in calls]
    return form


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


def text_after_answer(render: Render) -> tuple[str, str]:
    """Return the text that a template puts after an answer: at the end of a conversation, and before the next turn.

    An empty string if the template refuses such a conversation.
    """
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
    """Format a conversation for people: one line per message, `user: 2+2=`; tool calls as JSON."""
    if isinstance(messages, str):
        return messages
    return "\n".join(f"{message.get('role')}: {message_text(message)}" for message in messages)


def message_text(message: Mapping[str, Any]) -> str:
    """Return the content of a message, followed by its tool calls as JSON."""
    calls = message.get("tool_calls")
    parts = [message.get("content") or "", json.dumps(calls, ensure_ascii=False, default=str) if calls else ""]
    return "\n".join(str(part) for part in parts if part)
