"""TRL's dataset formats and two more (rated, ranked), detected from the columns.

    | format              | columns                          | used by         |
    |---------------------|----------------------------------|-----------------|
    | prompt-only         | prompt                           | grpo, ppo, dpo, distill, … (data.prompts) |
    | preference          | prompt, chosen, rejected         | dpo, reward_model |
    | implicit preference | chosen, rejected                 | dpo, reward_model; their common start is the prompt |
    | rated               | prompt, completions, ratings     | dpo, reward_model |
    | ranked              | prompt, completions, ranks       | dpo, reward_model |
    | prompt-completion   | prompt, completion               | sft, distill    |
    | language modelling  | text, or messages                | sft, distill    |
    | unpaired preference | prompt, completion, label        | kto             |
    | stepwise            | prompt, completions, labels      | nothing yet     |

A value is *standard* (a string) or *conversational* (`[{"role": …, "content": …}]`).
"""

from __future__ import annotations

import unicodedata
from collections.abc import Collection, Mapping, Sequence
from enum import StrEnum
from typing import Any

from orchestrator.data.rows import kind_of
from workers.config import METHODS
from workers.types import Text


class Format(StrEnum):
    preference = "preference"
    implicit_preference = "implicit preference"
    rated = "rated"
    ranked = "ranked"
    unpaired = "unpaired preference"
    stepwise = "stepwise"
    prompt_completion = "prompt-completion"
    messages = "messages"
    text = "text"
    prompt_only = "prompt-only"


COLUMNS: Mapping[Format, tuple[str, ...]] = {
    # in the order of detection: the more specific first
    Format.preference: ("prompt", "chosen", "rejected"),
    Format.implicit_preference: ("chosen", "rejected"),
    Format.rated: ("prompt", "completions", "ratings"),
    Format.ranked: ("prompt", "completions", "ranks"),
    Format.unpaired: ("prompt", "completion", "label"),
    Format.stepwise: ("prompt", "completions", "labels"),
    Format.prompt_completion: ("prompt", "completion"),
    Format.messages: ("messages",),
    Format.text: ("text",),
    Format.prompt_only: ("prompt",),
}
FORMATS: Mapping[str, tuple[Format, ...]] = {
    # kind of dataset that a method needs → its formats, the usual one first
    "demonstrations": (Format.prompt_completion, Format.messages, Format.text),
    "labels": (Format.unpaired,),
    "pairs": (Format.preference, Format.implicit_preference, Format.rated, Format.ranked),
}
ACCEPTS: Mapping[str, tuple[Format, ...]] = {
    name: FORMATS[method.needs.dataset] for name, method in METHODS.items() if method.needs.dataset is not None
}
SPELLINGS: Mapping[str, str] = {
    # columns of well-known datasets → ours
    "question": "prompt",
    "problem": "prompt",
    "query": "prompt",
    "input": "prompt",
    "instruction": "prompt",
    "response": "completion",
    "output": "completion",
    "answer": "completion",
    "conversations": "messages",
    "conversation": "messages",
    "chosen_response": "chosen",
    "response_chosen": "chosen",
    "rejected_response": "rejected",
    "response_rejected": "rejected",
    "preferred": "chosen",
    "responses": "completions",
    "rating": "ratings",
    "scores": "ratings",
    "ranking": "ranks",
}
ROLES = ("system", "developer", "user", "assistant", "tool")


def detect(columns: Collection[str]) -> Format | None:
    """Return the format of a row with these columns; None: it has none of the formats."""
    return next((format for format, wanted in COLUMNS.items() if set(wanted) <= set(columns)), None)


def nearest(columns: Collection[str], formats: Sequence[Format]) -> Format:
    """Return the format of which the largest share of columns is given, under any spelling; the first of equal ones."""
    known = {*columns, *(SPELLINGS[column] for column in columns if column in SPELLINGS)}
    return max(formats, key=lambda format: len(known & set(COLUMNS[format])) / len(COLUMNS[format]))


def missing(columns: Collection[str], wanted: Sequence[str]) -> tuple[str, str]:
    """Return (what, fix) for a row without some of the `wanted` columns."""
    absent = [column for column in wanted if column not in columns]
    renames = {ours: theirs for theirs, ours in SPELLINGS.items() if theirs in columns and ours in absent}
    named = ", ".join(f"`{column}`" for column in absent)
    what = f"no {named}; the columns are {', '.join(sorted(columns)) or 'none'}"
    if renames:
        return what, "rename " + ", ".join(f"`{theirs}` to `{ours}`" for ours, theirs in renames.items())
    return what, f"give every row {', '.join(f'`{column}`' for column in wanted)}"


def is_conversation(value: object) -> bool:
    return isinstance(value, list)


def starts_before_the_answer(value: object) -> bool:
    """Return whether this is a whole conversation, not only the assistant's part of it."""
    return isinstance(value, list) and bool(value) and isinstance(value[0], dict) and value[0].get("role") in ROLES[:3]


def wrong_text(value: object, column: str) -> str:
    """Return what is wrong with a value that should be text or a conversation; empty: nothing."""
    if isinstance(value, str):
        return "" if value.strip() else f"`{column}` is empty"
    if not isinstance(value, list):
        return f"`{column}` is {kind_of(value)}, not text or a list of messages"
    if not value:
        return f"`{column}` is an empty list"
    for message in value:
        if not isinstance(message, dict):
            return f"`{column}` is a list of {kind_of(message)}, not of messages with role and content"
        role, content = message.get("role"), message.get("content")
        if role not in ROLES:
            return f"`{column}` has the role {role!r}; roles are {', '.join(ROLES)}"
        if not isinstance(content, str) and not (content is None and message.get("tool_calls")):
            return f"`{column}` has a message whose content is {kind_of(content)}, not text"
    return ""


def wrong_prompt(value: Any, column: str = "prompt") -> str:
    """Return what is wrong with a prompt, including the order of its roles; empty: nothing."""
    if (wrong := wrong_text(value, column)) or isinstance(value, str):
        return wrong
    roles = [message["role"] for message in value]
    order = f"`{column}` has the roles {', '.join(roles[:6])}{'…' if len(roles) > 6 else ''}"
    if any(role in ("system", "developer") for role in roles[1:]):
        return f"{order}: only the first message may be system"
    if roles[0] in ("assistant", "tool"):
        return f"{order}: a conversation starts with system or user"
    if roles[-1] == "assistant":
        return f"{order}: it ends with assistant, so there is nothing to answer"
    return ""


def wrong_completion(value: Any, column: str, *, conversational: bool) -> str:
    """Return what is wrong with a completion; empty: nothing. `conversational`: its prompt is a conversation."""
    if wrong := wrong_text(value, column):
        return wrong
    if is_conversation(value) != conversational:
        shapes = ("text", "a list of messages")
        return f"`prompt` is {shapes[conversational]} and `{column}` {shapes[not conversational]}"
    if conversational and (value[0]["role"] != "assistant" or value[-1]["role"] != "assistant"):
        roles = ", ".join(message["role"] for message in value[:6])
        return f"`{column}` has the roles {roles}: a completion starts and ends with assistant"
    if conversational and not any((m.get("content") or "").strip() or m.get("tool_calls") for m in value):
        return f"`{column}` is empty"
    return ""


def is_blank(answer: object) -> bool:
    """Return whether an answer has no text: a blank string, or a message of the assistant with blank content alone."""
    if isinstance(answer, list) and len(answer) == 1 and isinstance(answer[0], dict):
        message = answer[0]
        is_text = message.get("role") == "assistant" and not message.get("tool_calls")
        answer = message.get("content") if is_text else None
    return isinstance(answer, str) and not answer.strip()


def has_other_turns(completion: Text) -> bool:
    """Return whether a completion contains messages of users or tools, which the policy must not be trained on."""
    return not isinstance(completion, str) and any(message["role"] != "assistant" for message in completion)


def clean(value: Any) -> Text:
    """Return a text unchanged, and messages without the empty keys that columnar files fill in."""
    if isinstance(value, str):
        return value
    return [{k: v for k, v in message.items() if v is not None or k == "content"} for message in value]


def common_length(chosen: Text, rejected: Text) -> int:
    """Count the characters or messages that both start with, without a space before the difference."""
    pairs = zip(chosen, rejected, strict=False)
    length = next((i for i, (a, b) in enumerate(pairs) if a != b), min(len(chosen), len(rejected)))
    if isinstance(chosen, str) and length and chosen[length - 1] == " ":
        length -= 1
    return length


def joined(prompt: Any, answered: Sequence[Mapping[str, Any]]) -> list[Any] | None:
    """Join a prompt and `answered`, a conversation whose first message is not the assistant's.

    `answered` may continue the prompt, or repeat some or all of it. Return None if the two contradict each other.
    """
    if isinstance(prompt, str):
        contents = ["".join((message.get("content") or "").split()) for message in answered]
        asked = "".join(prompt.split())
        return list(answered) if any(part and (asked in part or part in asked) for part in contents[:-1]) else None
    before, turns = as_read(prompt), as_read(answered)
    if any(turns[at : at + len(before)] == before for at in range(len(turns) - len(before))):
        return list(answered)
    shared = next((n for n in range(min(len(before), len(turns)), 0, -1) if before[-n:] == turns[:n]), 0)
    if not shared and (answered[0]["role"] != "user" or prompt[-1]["role"] == "user"):
        return None
    return [*prompt, *answered[shared:]]


def as_read(text: Text) -> list[Any]:
    """Return what a reader sees of a text: without surrounding white space, in Unicode's NFC form."""
    if isinstance(text, str):
        return [unicodedata.normalize("NFC", text).strip()]
    return [
        (m["role"], unicodedata.normalize("NFC", m.get("content") or "").strip(), m.get("tool_calls")) for m in text
    ]


def equal_to_a_reader(first: Text, second: Text) -> bool:
    """Return whether two texts are equal except for surrounding white space and the Unicode form of accents."""
    return as_read(first) == as_read(second)
