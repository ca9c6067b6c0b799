"""Read data of any supported format for advice, before a method is chosen."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from orchestrator.data.detection import algorithm_for, format_of
from orchestrator.data.examples import read_examples
from orchestrator.data.formats import COLUMNS, Format
from orchestrator.data.prompts import read_prompts
from orchestrator.data.rows import RowProblems
from orchestrator.errors import BadInput, Problem, Problems
from workers.types import Example, Prompt


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
    format = format_of(name)
    if format == Format.prompt_only:
        return Source(name=name, format=format, prompts=read_prompts(name))
    examples = read_examples(name, algorithm=algorithm_for(format), equal_pairs=RowProblems(name))
    # A prompt that is extracted from the completions or the messages is not a column that a run could sample for.
    has_prompts = "prompt" in COLUMNS[format]
    prompts = tuple(e.prompt for e in examples) if has_prompts else ()
    return Source(name=name, format=format, examples=examples, prompts=prompts)
