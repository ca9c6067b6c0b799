"""Export of tasks: the files that a labelling tool imports, and the task file that the answers are read with."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import cast

from orchestrator.errors import BadInput, Problem
from orchestrator.labelling import argilla, label_studio
from orchestrator.labelling.task import Task
from orchestrator.labelling.task_file import NAME, write_tasks
from orchestrator.labelling.tool import Sheet, Tool
from workers.files import durable

TOOLS: Mapping[str, Tool] = {tool.name: tool for tool in (cast(Tool, label_studio), cast(Tool, argilla))}
"""Labelling tools by name. A record is read by the first that knows it."""


def export_tasks(directory: Path, tasks: Sequence[Task], tool: Tool, sheet: Sheet) -> list[str]:
    """Write the files of an export into a new directory, and return their names.

    Raises:
        BadInput: the directory exists and is not empty.
    """
    if directory.exists() and (not directory.is_dir() or any(directory.iterdir())):
        why, fix = "an export would be mixed with another one", "give another directory, or remove it"
        raise BadInput(Problem(what="already exists", where=str(directory), why=why, fix=fix))
    durable.make_directory(directory.absolute())
    names = []
    for name, text in tool.files(tasks, sheet):
        durable.replace(directory / name, text.encode())
        names.append(name)
    write_tasks(directory / NAME, tasks)
    return [*names, NAME]
