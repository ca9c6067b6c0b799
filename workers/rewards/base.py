"""Interface of a scorer, and checks of what it returns."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import numpy as np

from workers.types import Floats, Prompt, Text

LARGEST = float(np.finfo(np.float32).max)


class RewardError(Exception):
    """A scorer failed or returned something invalid. The message names the scorer, the rows and what was returned."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Completed:
    """n completions to score. The three sequences are aligned. A completion is a string, or a list of messages."""

    prompts: Sequence[Prompt]
    completions: Sequence[Text]
    completion_ids: Sequence[list[int]]


class Scorer(Protocol):
    """Source of rewards."""

    name: str  # name in the metrics: rewards/{name}/mean

    def score(self, completed: Completed) -> Floats:
        """Return one number per completion, NaN where the scorer abstains.

        Raises:
            RewardError: the scorer failed or returned something invalid.
        """
        ...


@runtime_checkable
class CountsUsage(Protocol):
    """A scorer that costs something for each use."""

    def take_usage(self) -> Mapping[str, float]:
        """Return what was used since the last call, such as {"requests": 8, "cost": 0.01}, in dollars."""
        ...


def rewards_of(name: str, reply: Mapping[str, Any], prompts: Sequence[Prompt]) -> Floats:
    """Return the rewards in a reply of `function_child` as float32. `None` entries become NaN.

    Raises:
        RewardError: the reply has no rewards, a wrong number of them, or one that is not a finite number.
    """
    if "row" in reply:
        where = prompts[reply["row"]].id if reply["row"] < len(prompts) else f"row {reply['row']}"
        raise RewardError(
            f"reward {name} returned {reply['value']} ({reply['kind']}) for prompt {where}; "
            "return a float, or None to abstain"
        )
    if "rewards" not in reply:
        raise RewardError(
            f"reward {name} returned {reply.get('kind')}; it must return a list of numbers, one per completion"
        )
    rewards = reply["rewards"]
    if len(rewards) != len(prompts):
        raise RewardError(f"reward {name} returned {len(rewards)} rewards for {len(prompts)} completions")
    values = np.asarray([math.nan if value is None else value for value in rewards], np.float64)
    wrong = [i for i, value in enumerate(rewards) if value is not None and not abs(value) <= LARGEST]
    if wrong:
        raise RewardError(
            f"reward {name} returned {values[wrong[0]]} for {rows([prompts[i] for i in wrong])}; rewards must be finite"
        )
    return values.astype(np.float32)


def rows(prompts: Sequence[Prompt]) -> str:
    """Name the prompts, for example "prompts p.jsonl:1, p.jsonl:2 and 3 more"."""
    ids = list(dict.fromkeys(p.id for p in prompts))
    more = f" and {len(ids) - 3} more" if len(ids) > 3 else ""
    return f"prompt{'s' if len(ids) > 1 else ''} {', '.join(ids[:3])}{more}"


def last_text(completion: Text) -> str:
    """Return the completion's text; of a conversation, that of the last message."""
    return completion if isinstance(completion, str) else str(completion[-1].get("content") or "")
