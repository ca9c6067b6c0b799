"""`rlhf report`: what happened, as pictures."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from orchestrator.errors import BadInput, Problem
from orchestrator.terminal import say


def add_to(app: typer.Typer) -> None:
    app.command()(report)


def report(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN...", help="Run directories, finished or not.")],
    output: Annotated[
        Path | None,
        typer.Option(
            "--output", metavar="FILE", help="FILE.html or FILE.md. Else report.html, of one run in its directory."
        ),
    ] = None,
) -> int:
    """Write one HTML file (or Markdown) of curves, costs, samples and alarms; needs no cluster."""
    from orchestrator.report.page import report as make
    from orchestrator.report.page import write
    from orchestrator.rundir.directory import RunDirectory

    directories = [RunDirectory.open(path) for path in dict.fromkeys(runs)]
    target = output or (directories[0].report if len(directories) == 1 else Path("report.html"))
    markdown = require_suffix(target)
    made = make(directories)
    write(target, made.markdown if markdown else made.html)
    say(str(target))
    return 0


def require_suffix(target: Path) -> bool:
    """Whether it is to be Markdown. Raises BadInput for a file that would be neither, or has no place."""
    if target.suffix.lower() not in (".html", ".htm", ".md"):
        why = "its ending says in which form the report is written"
        raise BadInput(
            Problem(what=f"--output {target}", where="command line", why=why, fix="name a file .html or .md")
        )
    if not target.parent.is_dir():
        why = f"there is no directory {target.parent}"
        raise BadInput(Problem(what=f"--output {target}", where="command line", why=why, fix=f"mkdir {target.parent}"))
    return target.suffix.lower() == ".md"
