"""Find out what a data source holds, from its first row, before a method is chosen."""

from __future__ import annotations

from orchestrator.data.formats import ACCEPTS, COLUMNS, Format, detect, missing, nearest
from orchestrator.data.rows import RowProblems
from orchestrator.data.sources import read_rows

READABLE = tuple(format for format in COLUMNS if format != Format.stepwise)


def format_of(source: str, split: str = "train") -> Format:
    """Return the format of the first row of a source.

    Raises:
        BadInput: if there is no row, or no method trains on its format.
    """
    problems = RowProblems(source)
    row = next(iter(read_rows(source, split, problems)), None)
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


def algorithm_for(format: Format) -> str:
    """Return the first method that trains on rows of this format; none trains on prompts alone."""
    return next(name for name, formats in ACCEPTS.items() if format in formats)
