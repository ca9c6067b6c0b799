"""Equality of a completion's final answer with the dataset's solution, as mathematics, words or a choice."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np

from workers.rewards import answers
from workers.rewards.answers import Answer
from workers.rewards.base import Completed, RewardError, last_text
from workers.types import Floats


@dataclass(frozen=True, kw_only=True, slots=True)
class Gold:
    """A solution, read. `parsed` is what math-verify makes of it."""

    answer: Answer
    parsed: list[Any]


class MathScorer:
    """1 when the completion's answer is the solution, else 0; NaN for a row without a solution.

    math-verify bounds its own time with `signal.alarm`, which works on a process's main thread only: this scorer
    belongs in an actor with one slot.
    """

    name = "math"

    def __init__(self, solution_column: str) -> None:
        self._column = solution_column

    def score(self, completed: Completed) -> Floats:
        rewards = np.full(len(completed.prompts), np.nan, np.float32)
        for i, (prompt, completion) in enumerate(zip(completed.prompts, completed.completions, strict=True)):
            if self._column not in prompt.columns:
                raise RewardError(
                    f"prompt {prompt.id} has no column {self._column!r}; it has {sorted(prompt.columns)}. "
                    "Set solution_column to the one that holds the answer"
                )
            solution = prompt.columns[self._column]
            if solution is not None and not answers.wrong_solution(solution):
                rewards[i] = float(is_right(str(solution), last_text(completion)))
        return rewards


def is_right(solution: str, completion: str) -> bool:
    """Whether a completion ends in the answer that a solution gives."""
    gold = _gold(solution)
    if (stated := answers.stated(completion)) is not None:
        return _is_same(gold, answers.read(stated))
    tail, is_told = answers.stated_answer(completion)
    first, *beginnings = _sayings(tail)
    given = answers.read(first)
    if answers.is_set_off(first) or given.base is not None or (is_told and answers.is_expression(first)):
        return _is_same(gold, given) or (given.base is None and _is_in_prose(gold, completion))
    if any(_is_same_word(gold, answers.read(saying)) for saying in (first, *beginnings)):
        return True
    if _is_in_prose(gold, completion):
        return True
    return first == tail and answers.is_expression(tail) and _is_same(gold, given)


def _is_same(gold: Gold, given: Answer) -> bool:
    read = gold.answer
    if _is_same_word(gold, given) or (read.latex and read.latex == given.latex):
        return True
    if read.choice and given.choice and (read.rest or given.rest):
        return False
    if read.rest is not None and given.choice is None:  # of `(B) 12` the 12
        return _is_same(_gold(read.rest), given)
    if read.words is not None or given.words is not None:
        return False
    if read.base is not None and given.base is not None and read.base != given.base:
        return False
    return _equal(gold.parsed, _parsed(given.latex))


def _is_same_word(gold: Gold, given: Answer) -> bool:
    read = gold.answer
    return (read.choice is not None and read.choice == given.choice) or (
        read.words is not None and read.words == given.words
    )


def _is_in_prose(gold: Gold, completion: str) -> bool:
    """Whether math-verify finds the solution in a text that sets no answer apart."""
    return gold.answer.words is None and _equal(gold.parsed, _read_prose(completion))


def _sayings(tail: str) -> list[str]:
    """The last thing said, and how it begins: "yes", of "yes, for it is even"."""
    sentence = tail.split("\n")[0].strip()
    return [sentence, *(sentence.split(mark)[0] for mark in (". ", ", ", "; ", "! ") if mark in sentence)]


@lru_cache(maxsize=1024)  # a solution is the same for the whole group
def _gold(solution: str) -> Gold:
    text = answers.stated(solution)
    if text is None and answers.is_prose(solution):
        return Gold(answer=Answer(latex="", words=None), parsed=_read_prose(solution))
    answer = answers.read(answers.stated_answer(solution)[0] if text is None else text)
    return Gold(answer=answer, parsed=_parsed(answer.latex))


def _parsed(latex: str) -> list[Any]:
    return _read_prose(f"\\boxed{{{latex}}}")


def _read_prose(text: str) -> list[Any]:
    from math_verify import parse  # type: ignore[import-untyped,unused-ignore]

    found: list[Any] = parse(text)
    return found


def _equal(gold: list[Any], given: list[Any]) -> bool:
    from math_verify import verify

    return bool(verify(gold, given))
