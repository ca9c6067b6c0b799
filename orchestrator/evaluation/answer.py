"""Record of one answer to a held-out prompt: numbers only, from which runs are compared afterwards."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, TypeAlias

Mode: TypeAlias = Literal["greedy", "sampled", "at_temperature"]
"""Sampling of an answer: greedy, at temperature 1, or at one of `evaluation.temperatures`."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Answer:
    """Measurements of one answer to a held-out prompt.

    Example: `Answer(mode="sampled", prompt_id="test.jsonl:3", index=0, reward=1.0, scores={"exact_sort": 1.0},
    length=6, log_ratio=0.8)`.
    """

    mode: Mode
    prompt_id: str
    index: int  # among the prompt's answers of this mode and temperature
    reward: float
    scores: Mapping[str, float | None]  # by scorer; None: the scorer abstained
    length: int  # tokens, including the end-of-sequence token
    log_ratio: float | None  # log π(y) − log π_0(y) in nats, π_0 the initial model; None: not measured
    temperature: float = 1.0  # of the sampling; 0 for greedy answers
