"""Equality of a completion's final answer with the dataset's solution, as mathematics."""

from __future__ import annotations

import numpy as np

from workers.rewards.base import Completed, RewardError, last_text
from workers.types import Floats


class MathScorer:
    """1 when math-verify finds the completion's answer equal to the solution, else 0; NaN for an unreadable solution.

    math-verify bounds its own time with `signal.alarm`, which works on a process's main thread only: this scorer
    belongs in an actor with one slot.
    """

    name = "math"

    def __init__(self, solution_column: str) -> None:
        self._column = solution_column

    def score(self, completed: Completed) -> Floats:
        from math_verify import parse, verify  # type: ignore[import-untyped,unused-ignore]

        rewards = np.full(len(completed.prompts), np.nan, np.float32)
        for i, (prompt, completion) in enumerate(zip(completed.prompts, completed.completions, strict=True)):
            if self._column not in prompt.columns:
                raise RewardError(
                    f"prompt {prompt.id} has no column {self._column!r}; it has {sorted(prompt.columns)}. "
                    "Set solution_column to the one that holds the answer"
                )
            gold = parse(str(prompt.columns[self._column]))
            if gold:
                rewards[i] = float(verify(gold, parse(last_text(completion))))
        return rewards
