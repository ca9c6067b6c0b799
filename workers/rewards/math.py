"""Comparison of a completion's final answer with the dataset's solution, as mathematics, words or a choice."""

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
    """Parsed solution. `parsed` is math-verify's result."""

    answer: Answer
    parsed: list[Any]


class MathScorer:
    """1 if the completion's answer equals the solution, else 0; NaN for a row without a solution.

    math-verify limits its own time with `signal.alarm`, which only works on a process's main thread: this scorer must
    run in an actor without concurrency.
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
    """Return whether the completion's final answer equals the solution."""
    gold = _gold(solution)
    if (marked := answers.marked_answer(completion)) is not None:
        return _is_same(gold, answers.parse(marked))
    tail, is_announced = answers.final_statement(completion)
    first, *openings = _candidates(tail)
    given = answers.parse(first)
    if answers.is_set_off(first) or given.base is not None or (is_announced and answers.is_expression(first)):
        return _is_same(gold, given) or (given.base is None and _is_in_prose(gold, completion))
    if any(_is_same_word(gold, answers.parse(candidate)) for candidate in (first, *openings)):
        return True
    if _is_in_prose(gold, completion):
        return True
    return first == tail and answers.is_expression(tail) and _is_same(gold, given)


def _is_same(gold: Gold, given: Answer) -> bool:
    answer = gold.answer
    if _is_same_word(gold, given) or (answer.latex and answer.latex == given.latex):
        return True
    if answer.choice and given.choice and (answer.rest or given.rest):
        return False
    if answer.rest is not None and given.choice is None:  # compare with the 12 of `(B) 12`
        return _is_same(_gold(answer.rest), given)
    if answer.words is not None or given.words is not None:
        return False
    if answer.base is not None and given.base is not None and answer.base != given.base:
        return False
    return _equal(gold.parsed, _parsed(given.latex))


def _is_same_word(gold: Gold, given: Answer) -> bool:
    answer = gold.answer
    return (answer.choice is not None and answer.choice == given.choice) or (
        answer.words is not None and answer.words == given.words
    )


def _is_in_prose(gold: Gold, completion: str) -> bool:
    """Return whether math-verify finds the solution in a text without a marked answer."""
    return gold.answer.words is None and _equal(gold.parsed, _read_prose(completion))


def _candidates(tail: str) -> list[str]:
    """Return the first sentence of `tail` and its openings, for example "yes" of "yes, for it is even"."""
    sentence = tail.split("\n")[0].strip()
    return [sentence, *(sentence.split(mark)[0] for mark in (". ", ", ", "; ", "! ") if mark in sentence)]


@lru_cache(maxsize=1024)  # a solution is the same for the whole group
def _gold(solution: str) -> Gold:
    text = answers.marked_answer(solution)
    if text is None and answers.is_prose(solution):
        return Gold(answer=Answer(latex="", words=None), parsed=_read_prose(solution))
    answer = answers.parse(answers.final_statement(solution)[0] if text is None else text)
    return Gold(answer=answer, parsed=_parsed(answer.latex))


def _parsed(latex: str) -> list[Any]:
    return _read_prose(f"\\boxed{{{latex}}}")


def _read_prose(text: str) -> list[Any]:
    from math_verify import parse  # type: ignore[import-untyped,unused-ignore]

    parsed: list[Any] = parse(text)
    return parsed


def _equal(gold: list[Any], given: list[Any]) -> bool:
    from math_verify import verify

    return bool(verify(gold, given))
