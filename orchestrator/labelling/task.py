"""Task of a comparison: a prompt, two completions, and the answers of annotators so far.

    source row ──► Task ──► tasks.jsonl, a line per task ──► export of a labelling tool ──► answers

The id of a task is a hash of its texts. The two completions have an order of their own, so that a pair and its reverse
are one task. A tool shows texts, and which completion an answer means is read from the texts that come back: no key
file and no seed are needed to undo the order in which a task was shown, and an edited text is noticed.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal, TypeAlias

from orchestrator.data.formats import as_read
from workers.types import Text

Choice: TypeAlias = Literal[0, 1, "tie", "skip"]
"""Completion that an annotator prefers, by its index in the task; or no difference; or no opinion."""
CHOICES = (0, 1, "tie", "skip")
NO_TEXT = "(no text)"  # shown for a completion without text: tools refuse an empty field


@dataclass(frozen=True, kw_only=True, slots=True)
class Answer:
    """Answer of one annotator to one task.

    Example: `Answer(annotator="ann@lab.org", choice=1, shown_first=0, time="2026-11-30T10:00:00Z")`.
    """

    annotator: str
    choice: Choice
    shown_first: Literal[0, 1]  # completion that was shown first
    time: str = ""  # ISO 8601, as the tool wrote it; empty: the tool wrote none

    def to_dict(self) -> dict[str, Any]:
        return {
            "annotator": self.annotator,
            "choice": self.choice,
            "shown_first": self.shown_first,
            "time": self.time,
        }


@dataclass(frozen=True, kw_only=True, slots=True)
class Task:
    """Two completions of a prompt to compare.

    Example: `Task(prompt="2+2=", completions=("4", "5"), source="pairs.jsonl:3", preferred=0)`.
    """

    prompt: Text
    completions: tuple[Text, Text]  # in the order of `task_of`
    source: str  # id of the source row
    preferred: Literal[0, 1] | None = None  # completion that the source prefers; None: neither
    columns: Mapping[str, Any] = field(default_factory=dict)  # other fields of the row, for a chosen `preferred`
    answers: tuple[Answer, ...] = ()

    @property
    def id(self) -> str:
        written = json.dumps([self.prompt, *self.completions], sort_keys=True, ensure_ascii=False, default=str)
        return hashlib.blake2b(written.encode(), digest_size=12).hexdigest()

    def shown_first(self, seed: int) -> Literal[0, 1]:
        """Return the completion to show first: a fair coin, by seed and task."""
        coin = hashlib.blake2b(f"{seed}:{self.id}".encode(), digest_size=1).digest()[0] & 1
        return 1 if coin else 0

    def shown_texts(self, first: Literal[0, 1]) -> tuple[str, str, str]:
        """Return the prompt, the completion shown first and the other one, as an annotator sees them."""
        one, other = (as_shown(self.completions[i]) for i in (first, 1 - first))
        return as_shown(self.prompt), one, other

    def first_of(self, prompt: str, answer_1: str, answer_2: str) -> Literal[0, 1] | None:
        """Return the completion that was shown first, from the texts that came back; None: a text was edited."""
        came_back = [as_read(normal(text)) for text in (prompt, answer_1, answer_2)]
        for first in (0, 1):
            if came_back == [as_read(normal(text)) for text in self.shown_texts(first)]:
                return first
        return None

    def with_answers(self, answers: Sequence[Answer]) -> Task:
        return replace(self, answers=tuple(answers))

    def to_dict(self) -> dict[str, Any]:
        """Return the line of a task file."""
        return {
            "task_id": self.id,
            "prompt": self.prompt,
            "completions": list(self.completions),
            "preferred": self.preferred,
            "source": self.source,
            "columns": dict(self.columns),
            "answers": [answer.to_dict() for answer in self.answers],
        }


def task_of(
    prompt: Text,
    completions: Sequence[Text],
    *,
    source: str,
    preferred: int | None = None,
    columns: Mapping[str, Any] | None = None,
) -> Task | None:
    """Make a task of two completions in any order; None: an annotator could not tell them apart."""
    shown = [as_read(as_shown(completion)) for completion in completions]
    if shown[0] == shown[1]:
        return None
    order = sorted((0, 1), key=lambda i: json.dumps(completions[i], sort_keys=True, ensure_ascii=False, default=str))
    return Task(
        prompt=prompt,
        completions=(completions[order[0]], completions[order[1]]),
        source=source,
        preferred=None if preferred is None else _index(order.index(preferred)),
        columns=columns or {},
    )


def as_shown(text: Text) -> str:
    """Return a text as an annotator sees it: of a conversation, its messages under their roles.

    The only message of a completion has no role above it.
    """
    if isinstance(text, str):
        return text if text.strip() else NO_TEXT
    alone = len(text) == 1 and text[0].get("role") == "assistant"
    return "\n\n".join(_message(message, named=not alone) for message in text)


def normal(text: str) -> str:
    """Return a text with the line ends of Unix, as tools that run in a browser may have written others."""
    return text.replace("\r\n", "\n").replace("\r", "\n")


def _message(message: Mapping[str, Any], *, named: bool) -> str:
    content = message.get("content") or ""
    if calls := message.get("tool_calls"):
        content += ("\n" if content else "") + json.dumps(calls, ensure_ascii=False, indent=1, default=str)
    content = content if content.strip() else NO_TEXT
    return f"{message.get('role')}:\n{content}" if named else content


def _index(value: int) -> Literal[0, 1]:
    return 1 if value else 0
