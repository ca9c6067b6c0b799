"""What a scorer is given and what it may answer."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from workers.types import Floats, Prompt, Text


class RewardError(Exception):
    """A reward function broke its contract; the message names the function, the rows and what it returned."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Completed:
    """Completions to be scored: n of each, aligned. `completions` are strings, or message lists for conversations."""

    prompts: Sequence[Prompt]
    completions: Sequence[Text]
    completion_ids: Sequence[list[int]]


class Scorer(Protocol):
    """One source of reward."""

    name: str  # as metrics have it: rewards/{name}/mean

    def score(self, completed: Completed) -> Floats:
        """One number per completion; NaN where the scorer passes. Raises RewardError when it cannot be trusted."""
        ...


def checked(name: str, answer: object, prompts: Sequence[Prompt]) -> Floats:
    """`answer` as float32, or a RewardError that says what is wrong with it. `None` entries become NaN."""
    if not isinstance(answer, Sequence | np.ndarray) or isinstance(answer, str):
        raise RewardError(
            f"reward {name} returned {type(answer).__name__}; it must return a list of numbers, one per completion"
        )
    if len(answer) != len(prompts):
        raise RewardError(f"reward {name} returned {len(answer)} rewards for {len(prompts)} completions")
    values = np.full(len(prompts), np.nan, np.float32)
    for i, value in enumerate(answer):
        if value is None:
            continue
        if isinstance(value, bool | np.bool_) or not isinstance(value, int | float | np.integer | np.floating):
            raise RewardError(
                f"reward {name} returned {value!r} ({type(value).__name__}) for prompt {prompts[i].id}; "
                "return a float, or None to pass"
            )
        if not math.isfinite(value):
            raise RewardError(f"reward {name} returned {value} for prompt {prompts[i].id}; rewards must be finite")
        values[i] = value
    return values
