"""Command `rlhf report`: write a report of runs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from orchestrator.errors import BadInput, Problem
from orchestrator.terminal import say


def add_to(app: typer.Typer) -> None:
    app.command()(report)


def report(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN...", help="Run directories: runs/NAME, finished or not.")],
    output: Annotated[
        Path | None,
        typer.Option(
            "--output",
            metavar="FILE",
            help="File to write, .html or .md (default: report.html, in the run directory if there is one run).",
        ),
    ] = None,
) -> int:
    """Write a report of curves, costs, samples and alarms as one HTML or Markdown file. Needs no cluster."""
    from orchestrator.report.page import report as make
    from orchestrator.report.page import write
    from orchestrator.rundir.directory import RunDirectory

    directories = [RunDirectory.open(path) for path in dict.fromkeys(runs)]
    target = output or (directories[0].report if len(directories) == 1 else Path("report.html"))
    markdown = is_markdown(target)
    page = make(directories)
    write(target, page.markdown if markdown else page.html)
    say(str(target))
    return 0


def is_markdown(target: Path) -> bool:
    """Return whether the report is Markdown. Raise BadInput for another suffix or a directory that does not exist."""
    if target.suffix.lower() not in (".html", ".htm", ".md"):
        why = "the suffix selects the format"
        fix = "give a file that ends in .html or .md"
        raise BadInput(Problem(what=f"--output {target}", where="command line", why=why, fix=fix))
    if not target.parent.is_dir():
        why = f"there is no directory {target.parent}"
        raise BadInput(Problem(what=f"--output {target}", where="command line", why=why, fix=f"mkdir {target.parent}"))
    return target.suffix.lower() == ".md"
