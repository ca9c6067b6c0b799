"""Read data of any supported format for advice, before a method is chosen."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from orchestrator.data.examples import read_examples
from orchestrator.data.formats import ACCEPTS, COLUMNS, Format, detect, missing, nearest
from orchestrator.data.prompts import read_prompts
from orchestrator.data.rows import RowProblems
from orchestrator.data.sources import read_rows
from orchestrator.errors import BadInput, Problem, Problems
from workers.types import Example, Prompt

READABLE = tuple(format for format in COLUMNS if format != Format.stepwise)


@dataclass(frozen=True, kw_only=True, slots=True)
class Source:
    """One file, folder or Hub dataset."""

    name: str  # as given on the command line
    format: Format
    examples: tuple[Example, ...] = ()  # empty for a source of prompts alone
    prompts: tuple[Prompt, ...] = ()  # of all rows; empty if the format has no `prompt` column

    @property
    def num_rows(self) -> int:
        return len(self.examples) or len(self.prompts)


def read(names: Sequence[str]) -> list[Source]:
    """Read every source.

    Raises:
        BadInput: if any source has errors; all of them are listed.
    """
    problems, sources = Problems(), []
    for name in dict.fromkeys(names):
        try:
            sources.append(_read(name))
        except BadInput as error:
            problems += error.problems
    problems += [
        Problem(what="given twice", where=name, why="its rows would count double", fix="name each file once")
        for name in dict.fromkeys(names)
        if list(names).count(name) > 1
    ]
    problems.raise_if_any()
    return sources


def _read(name: str) -> Source:
    format = _format(name)
    if format == Format.prompt_only:
        return Source(name=name, format=format, prompts=read_prompts(name))
    algorithm = next(kind for kind, formats in ACCEPTS.items() if format in formats)
    examples = read_examples(name, algorithm=algorithm, equal_pairs=RowProblems(name))
    # A prompt that is extracted from the completions or the messages is not a column that a run could sample for.
    has_prompts = "prompt" in COLUMNS[format]
    prompts = tuple(e.prompt for e in examples) if has_prompts else ()
    return Source(name=name, format=format, examples=examples, prompts=prompts)


def _format(name: str) -> Format:
    """Detect the format of the first row. Raises BadInput if no method trains on it."""
    problems = RowProblems(name)
    row = next(iter(read_rows(name, "train", problems)), None)
    wanted = ", ".join(f"`{column}`" for column in COLUMNS[Format.preference])
    if row is None:
        problems.raise_if_any()
        raise problems.stop("0 rows", why="there is nothing to train on", fix=f"write rows with {wanted}")
    columns = [key for key, value in row.values.items() if value is not None]
    format = detect(columns)
    if format is None:
        what, fix = missing(columns, COLUMNS[nearest(columns, READABLE)])
        raise problems.stop(what, row=row.number, why="no method trains on rows with these columns", fix=fix)
    if format == Format.stepwise:
        fix = "use whole completions with labels, ratings or pairs"
        raise problems.stop(f"the rows are in {format} format", row=row.number, why="no method trains on it", fix=fix)
    return format
