"""Data of whatever format, read for advice: which method will learn from them is not known yet."""

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
    """One file, folder or hub dataset. `prompts`: those of all its rows, where rows have a prompt of their own."""

    name: str  # as it was given
    format: Format
    examples: tuple[Example, ...] = ()  # none of a prompt-only source
    prompts: tuple[Prompt, ...] = ()

    @property
    def num_rows(self) -> int:
        return len(self.examples) or len(self.prompts)


def read(names: Sequence[str]) -> list[Source]:
    """Every source.

    Raises:
        BadInput: with everything that is wrong in any of them.
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
    # What chosen and rejected have in common, and the turns before an answer, are no column that a run could sample by.
    own = "prompt" in COLUMNS[format]
    return Source(name=name, format=format, examples=examples, prompts=tuple(e.prompt for e in examples) if own else ())


def _format(name: str) -> Format:
    """Of the first row. Raises BadInput when it is none that anything here learns from."""
    problems = RowProblems(name)
    row = next(iter(read_rows(name, "train", problems)), None)
    wanted = ", ".join(f"`{column}`" for column in COLUMNS[Format.preference])
    if row is None:
        problems.raise_if_any()
        raise problems.stop("0 rows", why="there is nothing to learn from", fix=f"write rows with {wanted}")
    columns = [key for key, value in row.values.items() if value is not None]
    found = detect(columns)
    if found is None:
        what, fix = missing(columns, COLUMNS[nearest(columns, READABLE)])
        raise problems.stop(what, row=row.number, why="no method here learns from rows like this", fix=fix)
    if found == Format.stepwise:
        fix = "give whole completions with a label, ratings, or in pairs"
        raise problems.stop(f"the rows are in {found} format", row=row.number, why="nothing here learns it", fix=fix)
    return found
