"""Interface of a labelling tool: the files it imports, and the answers in the file it exports."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol, TypeAlias

from orchestrator.labelling.task import Task

Side: TypeAlias = Literal["first", "second", "tie", "skip"]
"""Answer as the tool has it: the completion shown first or second, no difference, or no opinion."""
QUESTION = "preference"  # name of the question in both tools
FIELDS = ("prompt", "answer_1", "answer_2")  # names of the texts in both tools
TIE = "tie"


@dataclass(frozen=True, kw_only=True, slots=True)
class Response:
    """Answer of one annotator in the file of a tool.

    Example: `Response(annotator="7", side="second", time="2026-11-30T10:00:00Z")`.
    """

    annotator: str
    side: Side
    time: str = ""  # empty: the tool wrote none


@dataclass(frozen=True, kw_only=True, slots=True)
class Answered:
    """Task as it came back from a tool, with the answers of all annotators."""

    task_id: str
    texts: tuple[str, str, str]  # prompt, and the completions in the order in which they were shown
    responses: tuple[Response, ...]
    no_status: bool = False  # the file does not tell submitted answers from drafts


@dataclass(frozen=True, kw_only=True, slots=True)
class Sheet:
    """Settings of an export: the texts around the tasks, and how they are shown."""

    question: str = "Which answer is better?"
    seed: int = 0  # of the order in which the two completions are shown
    min_votes: int = 1  # answers per task that the tool asks for, where its file says so
    suggest: bool = False  # show the preference of the source as a suggestion


class RecordError(ValueError):
    """A record of the tool's file cannot be used: (what, why, fix)."""

    def __init__(self, what: str, *, why: str = "", fix: str = "") -> None:
        super().__init__(what, why, fix)
        self.what, self.why, self.fix = what, why, fix


class Tool(Protocol):
    """Labelling tool."""

    name: str  # as a user writes it
    next_steps: str  # what to do with the files of an export

    def files(self, tasks: Sequence[Task], sheet: Sheet) -> Iterator[tuple[str, str]]:
        """Yield the name and the text of each file that the tool imports."""
        ...

    def reads(self, record: Mapping[str, Any]) -> bool:
        """Return whether a record is of this tool."""
        ...

    def answered(self, record: Mapping[str, Any]) -> Answered:
        """Return the answers of a record.

        Raises:
            RecordError: the record cannot be used.
        """
        ...


def texts_of(given: object, what: str) -> tuple[str, str, str]:
    """Return the three texts of a task that came back.

    Raises:
        RecordError: one is missing.
    """
    texts = [given.get(name) if isinstance(given, Mapping) else None for name in FIELDS]
    if not all(isinstance(text, str) for text in texts):
        why = "an answer counts only for the texts that were shown"
        raise RecordError(f"`{what}` lacks {', '.join(FIELDS)}", why=why, fix="export all fields of the tasks")
    return str(texts[0]), str(texts[1]), str(texts[2])
