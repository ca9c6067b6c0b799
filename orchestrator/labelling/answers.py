"""Answers to a task: each annotator has one, the last.

The last answer is the one with the later time. Where a time is missing, or the times are equal, it is the one that was
read later. An answer that is read twice is therefore one answer.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import UTC, datetime

from orchestrator.labelling.task import Answer


def merged(answers: Sequence[Answer], further: Iterable[Answer]) -> tuple[Answer, ...]:
    """Return the last answer of each annotator, in the order in which annotators answered first.

    >>> yes, no = (Answer(annotator="ann", choice=choice, shown_first=0) for choice in (0, 1))
    >>> [answer.choice for answer in merged([yes], [no])]
    [1]
    """
    last = {answer.annotator: answer for answer in answers}
    for answer in further:
        earlier = last.get(answer.annotator)
        if earlier is None or not is_earlier(answer, earlier):
            last[answer.annotator] = answer
    return tuple(last.values())


def is_earlier(answer: Answer, other: Answer) -> bool:
    """Return whether an answer was given before another one; False: later, at the same time, or unknown."""
    mine, theirs = moment(answer.time), moment(other.time)
    return mine is not None and theirs is not None and mine < theirs


def moment(time: str) -> datetime | None:
    """Return an ISO 8601 time; None: there is none. A time without a zone is in UTC."""
    try:
        read = datetime.fromisoformat(time)
    except ValueError:
        return None
    return read if read.tzinfo else read.replace(tzinfo=UTC)
