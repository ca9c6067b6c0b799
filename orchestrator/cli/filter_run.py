"""Command `rlhf filter`: another data set from the samples of a run."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from orchestrator.cli.options import RunPath
from orchestrator.terminal import say


def add_to(app: typer.Typer) -> None:
    app.command(name="filter")(filter_run)


def filter_run(
    run: RunPath,
    to: Annotated[Path, typer.Option("--to", metavar="DIR", help="Directory of the data set, which is created.")],
    overrides: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="a.b=c", help="Override what is kept, e.g. algorithm.filters.min_score=0.5.", show_default=False
        ),
    ] = None,
) -> int:
    """Filter the completions of a run of type generate anew, into another data set. Nothing is sampled again.

    The run does not change, and may still be sampling: the data set has what it has written so far.
    """
    from orchestrator.driver.filter_again import filter_again
    from orchestrator.generation.data_set import ROWS

    summary = filter_again(run, overrides or (), to, _with_progress)
    dropped: dict[str, int] = summary["dropped"]
    for reason, count in dropped.items():
        say(f"{count:>9,} dropped by {reason}")
    say(f"{summary['rows']:>9,} rows of {summary['completions']:,} completions: {to / ROWS}")
    return 0


def _with_progress(parts: Sequence[Path]) -> Any:
    return typer.progressbar(parts, label="filtering", file=sys.stderr)
