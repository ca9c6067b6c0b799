"""What a scorer is given and what it may answer."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from workers.types import Floats, Prompt, Text

LARGEST = float(np.finfo(np.float32).max)


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


def checked(name: str, told: Mapping[str, Any], prompts: Sequence[Prompt]) -> Floats:
    """What `function_child` tells of an answer as float32, or a RewardError that says what is wrong with it. `None`
    entries become NaN."""
    if "row" in told:
        where = prompts[told["row"]].id if told["row"] < len(prompts) else f"row {told['row']}"
        raise RewardError(
            f"reward {name} returned {told['value']} ({told['kind']}) for prompt {where}; "
            "return a float, or None to pass"
        )
    if "rewards" not in told:
        raise RewardError(
            f"reward {name} returned {told.get('kind')}; it must return a list of numbers, one per completion"
        )
    answer = told["rewards"]
    if len(answer) != len(prompts):
        raise RewardError(f"reward {name} returned {len(answer)} rewards for {len(prompts)} completions")
    values = np.asarray([math.nan if value is None else value for value in answer], np.float64)
    wrong = [i for i, value in enumerate(answer) if value is not None and not abs(value) <= LARGEST]
    if wrong:
        raise RewardError(
            f"reward {name} returned {values[wrong[0]]} for {rows([prompts[i] for i in wrong])}; rewards must be finite"
        )
    return values.astype(np.float32)


def rows(prompts: Sequence[Prompt]) -> str:
    """Example: "prompts p.jsonl:1, p.jsonl:2 and 3 more"."""
    ids = list(dict.fromkeys(p.id for p in prompts))
    more = f" and {len(ids) - 3} more" if len(ids) > 3 else ""
    return f"prompt{'s' if len(ids) > 1 else ''} {', '.join(ids[:3])}{more}"


def last_text(completion: Text) -> str:
    """What was said: of a conversation the last message."""
    return completion if isinstance(completion, str) else str(completion[-1].get("content") or "")
