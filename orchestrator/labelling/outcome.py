"""Outcome of a task: a preference on which the annotators agree, a tie, or more answers are needed.

votes for y      annotators who prefer y; a tie is half a vote, no opinion is none
agreement on y   votes for y over all votes: the same number as the soft label of the chosen completion

votes < min_votes                              → more
agreement on the better y >= min_agreement     → a preference
share of ties >= min_agreement                 → a tie
otherwise                                      → more, up to `max_votes`; then the majority decides, or it is a tie
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from orchestrator.labelling.task import Task

Verdict = Literal["preference", "tie", "more"]
SIDES = ("chosen_", "rejected_")  # prefixes of columns that belong to one side of a pair


@dataclass(frozen=True, kw_only=True, slots=True)
class Rule:
    """Rule by which answers decide. Example: `Rule(min_votes=3, min_agreement=0.75, max_votes=None)`."""

    min_votes: int = 1
    min_agreement: float = 0.75  # above one half
    max_votes: int | None = None  # votes from which the majority decides, whatever the agreement; None: never
    margins: bool = False  # write the log-odds of the votes as `margin`


@dataclass(frozen=True, kw_only=True, slots=True)
class Count:
    """Answers to one task. Example: `Count(votes=(3, 1), ties=0, skipped=1)`."""

    votes: tuple[int, int]  # for each completion of the task
    ties: int
    skipped: int

    @classmethod
    def of(cls, task: Task) -> Count:
        choices = [answer.choice for answer in task.answers]
        return cls(votes=(choices.count(0), choices.count(1)), ties=choices.count("tie"), skipped=choices.count("skip"))

    @property
    def total(self) -> int:
        """Number of votes, ties included."""
        return sum(self.votes) + self.ties

    @property
    def better(self) -> Literal[0, 1] | None:
        """Completion with more votes; None: equally many."""
        first, second = self.votes
        return None if first == second else 0 if first > second else 1

    @property
    def agreement(self) -> float:
        """Votes for the better completion over all votes, a tie being half a vote; 1/2 without votes."""
        return (max(self.votes) + self.ties / 2) / self.total if self.total else 0.5


def verdict(count: Count, rule: Rule) -> Verdict:
    """Return what the answers to a task say."""
    if not count.total or count.total < rule.min_votes:
        return "more"
    if count.better is not None and count.agreement >= rule.min_agreement:
        return "preference"
    if count.ties >= rule.min_agreement * count.total:
        return "tie"
    if rule.max_votes is not None and count.total >= rule.max_votes:
        return "tie" if count.better is None else "preference"
    return "more"


def row_of(task: Task, rule: Rule) -> dict[str, Any]:
    """Return the row of a preference, for `data.dataset`.

    The margin is the log-odds (v + 1)/(w + 1) of the votes, so that σ(margin) is the probability that the next
    annotator prefers the chosen completion, under a uniform prior.
    """
    count = Count.of(task)
    better = count.better
    assert better is not None, "a tie is no preference"
    names: Mapping[Any, str] = {better: "for", 1 - better: "against", "tie": "tie"}
    voters = [(answer.annotator, names[answer.choice]) for answer in task.answers if answer.choice != "skip"]
    favour, against = count.votes[better], count.votes[1 - better]
    row: dict[str, Any] = {
        "prompt": task.prompt,
        "chosen": task.completions[better],
        "rejected": task.completions[1 - better],
        "votes": {"for": favour, "against": against, "tie": count.ties},
        "annotators": [name for name, _ in voters],
        "annotator_votes": [vote for _, vote in voters],
        "agreement": round(count.agreement, 6),
        "task_id": task.id,
    }
    if rule.margins:
        row["margin"] = math.log((favour + count.ties / 2 + 1) / (against + count.ties / 2 + 1))
    further = _columns(task, reversed_=task.preferred not in (None, better))
    return row | {name: value for name, value in further.items() if name not in row}


def _columns(task: Task, *, reversed_: bool) -> dict[str, Any]:
    """Return the other columns of the source row; those of a side change sides with it."""
    if not reversed_:
        return dict(task.columns)
    return {_other_side(name): value for name, value in task.columns.items()}


def _other_side(name: str) -> str:
    for side, other in (SIDES, SIDES[::-1]):
        if name.startswith(side):
            return other + name.removeprefix(side)
    return name
