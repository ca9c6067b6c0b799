"""Task files: the tasks of an export, and those that need more answers, one JSON object per line."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from orchestrator.data.jsonl import read_jsonl
from orchestrator.data.rows import Row, RowProblems
from orchestrator.data.sources import local
from orchestrator.errors import BadInput, Problem
from orchestrator.labelling.answers import merged
from orchestrator.labelling.task import CHOICES, Answer, Task
from workers.files import durable

NAME = "tasks.jsonl"  # name of the task file in the directory of an export
KEYS = ("task_id", "prompt", "completions", "preferred", "source", "columns", "answers")
FIX = "use the file as `rlhf label` wrote it; for other texts, export them again"


def is_task(values: Mapping[str, Any]) -> bool:
    """Return whether a row is a line of a task file."""
    return {"task_id", "completions", "answers"} <= set(values)


def write_tasks(path: Path, tasks: Iterable[Task]) -> None:
    """Write a task file, durably."""
    write_rows(path, (task.to_dict() for task in tasks))


def write_rows(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """Write one JSON object per line, durably."""
    text = "".join(json.dumps(row, ensure_ascii=False, default=str) + "\n" for row in rows)
    durable.make_directory(path.absolute().parent)
    durable.replace(path, text.encode())


def read_tasks(paths: Sequence[Path]) -> dict[str, Task]:
    """Read task files, and merge the answers of tasks that are in several.

    Returns:
        Tasks by id, in the order of the files.

    Raises:
        BadInput: a file cannot be read, or a line is not a task, or its texts are not those of its id.
    """
    tasks: dict[str, Task] = {}
    for path in paths:
        problems = RowProblems(str(path))
        if not local(path).is_file():
            fix = f"give the {NAME} of the export, or the .more.jsonl of an earlier import"
            raise BadInput(Problem(what="there is no such task file", where=str(path), fix=fix))
        for row in read_jsonl(local(path), problems):
            if (task := parse_task(row, problems)) is not None:
                known = tasks.get(task.id)
                tasks[task.id] = task if known is None else known.with_answers(merged(known.answers, task.answers))
        problems.raise_if_any()
    if not tasks:
        raise BadInput(Problem(what="0 tasks", where=", ".join(map(str, paths)), fix="export tasks: rlhf label export"))
    return tasks


def parse_task(row: Row, problems: RowProblems) -> Task | None:
    """Return the task of a line; None: the line has a problem, which is added to `problems`."""
    values = row.values
    if set(values) != set(KEYS):
        problems.add(row.number, "not a line of a task file", why=f"its keys are {', '.join(KEYS)}", fix=FIX)
        return None
    answers, completions = values["answers"], values["completions"]
    is_pair = isinstance(completions, list) and len(completions) == 2
    if (
        not is_pair
        or not isinstance(values["columns"], dict)
        or not all(map(_is_text, (values["prompt"], *completions)))
    ):
        problems.add(row.number, "`prompt`, `completions` or `columns` is not as it was written", fix=FIX)
        return None
    if values["preferred"] not in (0, 1, None) or not isinstance(answers, list) or not all(map(_is_answer, answers)):
        problems.add(row.number, "an answer, or `preferred`, is not as it was written", fix=FIX)
        return None
    task = Task(
        prompt=values["prompt"],
        completions=(completions[0], completions[1]),
        source=str(values["source"]),
        preferred=values["preferred"],
        columns=values["columns"],
        answers=tuple(Answer(**answer) for answer in answers),
    )
    if task.id != values["task_id"]:
        why = "the id is a hash of the texts, and they were edited"
        problems.add(row.number, "the texts are not those of `task_id`", why=why, fix=FIX)
        return None
    return task


def _is_text(value: object) -> bool:
    return isinstance(value, str) or (isinstance(value, list) and all(isinstance(part, dict) for part in value))


def _is_answer(value: object) -> bool:
    if not isinstance(value, dict) or set(value) != {"annotator", "choice", "shown_first", "time"}:
        return False
    texts = isinstance(value["annotator"], str) and isinstance(value["time"], str)
    return texts and value["choice"] in CHOICES and value["shown_first"] in (0, 1)
