"""Prompts to sample completions for."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import islice
from typing import Any, Literal

from orchestrator.data.examples import OTHER_TURNS, split_pair
from orchestrator.data.formats import (
    clean,
    has_other_turns,
    is_conversation,
    missing,
    starts_before_the_answer,
    wrong_completion,
    wrong_prompt,
)
from orchestrator.data.rows import RowProblems
from orchestrator.data.sources import label, read_rows
from workers.types import Prompt, Text

GOLD_COLUMNS = ("chosen", "completion")  # of a row with an answer, the first that it has; TRL's names


def read_prompts(
    source: str,
    *,
    split: str = "train",
    max_rows: int | None = None,
    gold: Literal["never", "add", "chosen"] = "never",
) -> tuple[Prompt, ...]:
    """Read all rows with a `prompt`, or of preferences. Their further columns are passed to the reward functions.

    The prompt of a preference without one is the common start of `chosen` and `rejected`, as for methods on pairs.

    Args:
        gold: use of the rows' gold answers; never: they are only columns; add: of the rows that have one; chosen: every
            row must have one.

    Raises:
        BadInput: with every row that cannot be used, or if there are none.
    """
    problems, prompts, name = RowProblems(source), [], label(source)
    for row in islice(read_rows(source, split, problems), max_rows):
        values, wrong = row.values, ""
        if _holds_prompt(values):
            wrong, pair = split_pair(values)
            values = {**values, **pair}
        if not wrong and values.get("prompt") is None:
            what, fix = missing([key for key, value in values.items() if value is not None], ["prompt"])
            problems.add(row.number, what, fix=fix)
        elif wrong := wrong or wrong_prompt(values["prompt"]):
            problems.add(row.number, wrong, fix="fix or remove these rows")
        else:
            columns = {key: value for key, value in values.items() if key != "prompt"}
            wrong, answer = ("", None) if gold == "never" else _gold(values)
            if wrong or (answer is None and gold == "chosen"):
                problems.add(row.number, wrong or NO_GOLD, fix=GOLD_FIX)
            prompts.append(
                Prompt(id=f"{name}:{row.number}", text=clean(values["prompt"]), columns=columns, gold=answer)
            )
    problems.raise_if_any()
    if not prompts:
        raise problems.stop("0 rows", why="there is nothing to train on", fix='write rows like {"prompt": "2+2="}')
    if gold != "never" and all(prompt.gold is None for prompt in prompts):
        raise problems.stop(NO_GOLD, fix=GOLD_FIX)
    return tuple(prompts)


NO_GOLD = "no gold answer: neither `chosen` nor `completion`"
GOLD_FIX = "write the answer to `prompt` as `completion`, or set algorithm.pairs.gold to never"


def _gold(values: Mapping[str, Any]) -> tuple[str, Text | None]:
    """Return what is wrong with the gold answer of a row, and the answer; None: it has none."""
    column = next((name for name in GOLD_COLUMNS if values.get(name) is not None), None)
    if column is None:
        return "", None
    answer = values[column]
    wrong = wrong_completion(answer, column, conversational=is_conversation(values["prompt"]))
    if not wrong and has_other_turns(answer):
        wrong = OTHER_TURNS
    return wrong, None if wrong else clean(answer)


def _holds_prompt(values: Mapping[str, Any]) -> bool:
    """Return whether this is a preference whose chosen and rejected begin with the prompt."""
    chosen, rejected = values.get("chosen"), values.get("rejected")
    given = chosen is not None and rejected is not None
    return given and (values.get("prompt") is None or starts_before_the_answer(chosen))
