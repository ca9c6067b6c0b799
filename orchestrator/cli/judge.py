"""Command `rlhf judge`: compare a judge with the labels of preference data."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from orchestrator.cli.options import directory_option
from orchestrator.terminal import report, say


def add_to(app: typer.Typer) -> None:
    app.command()(judge)


def judge(
    data: Annotated[
        str, typer.Argument(metavar="DATA", help="Preferences or ratings to be trusted: a file, folder or Hub dataset.")
    ],
    file: Annotated[
        Path,
        typer.Option(
            "--judge", metavar="FILE", help="Judge (YAML file): the keys of {type: judge}, url and model at least."
        ),
    ],
    overrides: Annotated[
        list[str] | None,
        typer.Argument(metavar="a.b=c", help="Override a setting of the judge, e.g. compare=true.", show_default=False),
    ] = None,
    max_rows: Annotated[
        int | None, typer.Option("--max-rows", help="Number of rows, from the start of the data (default: all).", min=1)
    ] = None,
    split: Annotated[
        str, typer.Option("--split", help="Split of a Hub dataset or of a folder saved by `datasets`.")
    ] = "train",
    output: Annotated[Path | None, directory_option("judged/DATA--FILE")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the complete result as JSON.")] = False,
) -> int:
    """Measure how far a judge agrees with labels: accuracy, kappa, ties, position bias, and what it costs."""
    from orchestrator.evaluation import judge_labels
    from orchestrator.evaluation.judge_file import read_judge

    config = read_judge(file, overrides or ())
    directory = output or Path("judged") / f"{Path(data).stem}--{file.stem}"
    found = judge_labels.compare_with_labels(data, config, directory, report, split=split, max_rows=max_rows)
    if as_json:
        say(judge_labels.as_json(found))
        return 0
    for line in judge_labels.lines(found):
        say(line)
    say(f"result: {directory / judge_labels.REPORT}   verdicts: {directory / judge_labels.VERDICTS}")
    return 0
