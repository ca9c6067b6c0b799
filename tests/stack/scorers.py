"""Reward functions of the recipes in this folder, for plain text and for conversations."""

from __future__ import annotations

import os
import signal
from collections.abc import Mapping, Sequence
from itertools import count
from pathlib import Path

Answer = str | Sequence[Mapping[str, str]]


def letters_in_place(completions: list[Answer], solution: list[str], **_: object) -> list[float]:
    """Return the share of letters in the right place, in which even weak models differ."""
    return [_share(_text(answer), right) for answer, right in zip(completions, solution, strict=True)]


_batches = count(1)


def raises_on_its_second_batch(completions: list[Answer], **_: object) -> list[float]:
    return [1 / (2 - next(_batches))] * len(completions)


def is_killed_by_every_batch_but_the_first(completions: list[Answer], **_: object) -> list[float]:
    """Kill the reward worker on every batch except the first batch of the whole run.

    The function runs in a child process of the worker, so its parent is killed.
    """
    scored = Path(__file__).with_name("scored-the-first-batch")
    if scored.exists():
        os.kill(os.getppid(), signal.SIGKILL)
    scored.touch()
    return [0.0] * len(completions)


def _share(answer: str, right: str) -> float:
    return sum(a == b for a, b in zip(answer, right, strict=False)) / max(len(answer), len(right))


def _text(answer: Answer) -> str:
    return answer if isinstance(answer, str) else answer[-1]["content"]
