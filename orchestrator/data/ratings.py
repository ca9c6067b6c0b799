"""Read several completions of one prompt with a rating or rank each.

A rating is a score: higher is better, and the margin of a pair is the difference of its ratings. Ranks start at 1, the
best; the score is −rank, so the margin of a pair is the difference of its ranks. Completions with equal ratings or
ranks form no pair.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import combinations
from typing import Any, Literal

import numpy as np

from orchestrator.data.formats import clean, equal_to_a_reader, is_conversation, wrong_completion, wrong_prompt
from orchestrator.data.rows import kind_of
from workers.types import Text
from workers.votes import has_votes

Scale = Literal["ratings", "ranks"]
LARGEST = float(np.finfo(np.float32).max)


def wrong_scored(values: Mapping[str, Any], scale: Scale) -> str:
    """Return what is wrong with a row of `prompt`, `completions` and `ratings` or `ranks`; empty: nothing."""
    prompt, completions, numbers = values["prompt"], values["completions"], values[scale]
    if wrong := wrong_prompt(prompt):
        return wrong
    if not isinstance(completions, list) or len(completions) < 2:
        return "`completions` is not a list of at least 2 completions"
    conversational = is_conversation(prompt)
    for i, completion in enumerate(completions):
        if wrong := wrong_completion(completion, f"completions[{i}]", conversational=conversational):
            return wrong
    if not isinstance(numbers, list):
        return f"`{scale}` is {kind_of(numbers)}, not a list of numbers"
    if len(numbers) != len(completions):
        return f"{len(completions)} `completions` but {len(numbers)} `{scale}`: one per completion is needed"
    for i, number in enumerate(numbers):
        if wrong := _wrong_number(number, f"{scale}[{i}]", scale):
            return wrong
    if wrong := _indistinct_in_float32(numbers, scale):
        return wrong
    for i, j in combinations(range(len(completions)), 2):
        if numbers[i] != numbers[j] and equal_to_a_reader(completions[i], completions[j]):
            return f"`completions[{i}]` and `completions[{j}]` are equal, but their `{scale}` differ"
    return ""


def best_first(values: Mapping[str, Any], scale: Scale) -> tuple[tuple[Text, ...], tuple[float, ...]]:
    """Return the completions of a valid row, best first, and their scores. Equal scores keep the order of the row."""
    scores = [float(number) if scale == "ratings" else -float(number) for number in values[scale]]
    order = sorted(range(len(scores)), key=lambda i: -scores[i])
    return tuple(clean(values["completions"][i]) for i in order), tuple(scores[i] for i in order)


def without_preference(scores: Sequence[tuple[float, ...] | None]) -> bool:
    """Return whether no row prefers a completion to another."""
    return all(row is None or row[0] == row[-1] for row in scores)


def wrong_margin(margin: object) -> str:
    """Return what is wrong with the `margin` of a pair; empty: nothing."""
    if isinstance(margin, bool) or not isinstance(margin, int | float):
        return f"`margin` is {kind_of(margin)}, not a number"
    if not math.isfinite(margin) or margin < 0:
        return "`margin` is negative or not finite: the chosen completion must be the better one"
    return _beyond_float32(margin, "margin")


def wrong_votes(votes: object) -> str:
    """Return what is wrong with the `votes` of a pair; empty: nothing, or the column counts something else."""
    if not has_votes(votes):
        return ""
    counts = [votes["for"], votes["against"], votes.get("tie") or 0]
    if any(isinstance(count, bool) or not isinstance(count, int) or count < 0 for count in counts):
        return "`votes` has a count that is not a whole number from 0"
    return "" if sum(counts) else "`votes` counts no vote"


def _beyond_float32(number: float, name: str) -> str:
    return f"`{name}` is {number:g}, beyond the largest number of float32 ({LARGEST:.2g})" * (abs(number) > LARGEST)


def _indistinct_in_float32(numbers: Sequence[float], scale: Scale) -> str:
    """Return what is wrong if scores or their differences, which are float32, overflow or coincide; empty: nothing."""
    if max(numbers) - min(numbers) > LARGEST:
        return f"`{scale}` differ by {max(numbers) - min(numbers):g}, beyond float32: scale them down"
    for i, j in combinations(range(len(numbers)), 2):
        if numbers[i] != numbers[j] and np.float32(numbers[i]) == np.float32(numbers[j]):
            return f"`{scale}[{i}]` and `{scale}[{j}]` are equal in float32: scale them"
    return ""


def _wrong_number(number: object, name: str, scale: Scale) -> str:
    if isinstance(number, bool) or not isinstance(number, int | float):
        return f"`{name}` is {kind_of(number)}, not a number"
    if not math.isfinite(number):
        return f"`{name}` is not finite"
    if wrong := _beyond_float32(number, name):
        return wrong
    if scale == "ranks" and (number < 1 or number != int(number)):
        return f"`{name}` is {number}; ranks are whole numbers from 1, the best"
    return ""
