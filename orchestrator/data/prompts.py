"""Prompts to sample completions for."""

from __future__ import annotations

from itertools import islice

from orchestrator.data.formats import clean, missing, wrong_prompt
from orchestrator.data.rows import RowProblems
from orchestrator.data.sources import label, read_rows
from workers.types import Prompt


def read_prompts(source: str, *, split: str = "train", max_rows: int | None = None) -> tuple[Prompt, ...]:
    """Read all rows with a `prompt`. Their further columns are passed to the reward functions.

    Raises:
        BadInput: with every row that cannot be used, or if there are none.
    """
    problems, prompts, name = RowProblems(source), [], label(source)
    for row in islice(read_rows(source, split, problems), max_rows):
        if row.values.get("prompt") is None:
            what, fix = missing([key for key, value in row.values.items() if value is not None], ["prompt"])
            problems.add(row.number, what, fix=fix)
        elif wrong := wrong_prompt(row.values["prompt"]):
            problems.add(row.number, wrong, fix="fix or remove these rows")
        else:
            columns = {key: value for key, value in row.values.items() if key != "prompt"}
            prompts.append(Prompt(id=f"{name}:{row.number}", text=clean(row.values["prompt"]), columns=columns))
    problems.raise_if_any()
    if not prompts:
        raise problems.stop("0 rows", why="there is nothing to train on", fix='write rows like {"prompt": "2+2="}')
    return tuple(prompts)
