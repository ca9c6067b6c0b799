"""Command `rlhf audit`: look for faults in preference data, and write a copy without them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from orchestrator.terminal import report, say

UNUSABLE = 2  # exit code for rows that no run accepts


def add_to(app: typer.Typer) -> None:
    app.command()(audit)


Data = Annotated[
    str,
    typer.Argument(
        metavar="DATA",
        help="Pairs, ratings, ranks, labels or demonstrations: a file, a folder or a Hub dataset.",
        show_default=False,
    ),
]
Against = Annotated[
    str | None,
    typer.Option(
        "--against",
        metavar="EVAL_FILE",
        help="Evaluation data whose prompts should not be trained on.",
        show_default=False,
    ),
]
Annotator = Annotated[
    str | None,
    typer.Option(
        "--annotator",
        metavar="COLUMN",
        help="Column that names the annotator (default: annotator, annotator_id, worker, …).",
        show_default=False,
    ),
]
Model = Annotated[
    str | None,
    typer.Option(
        "--model",
        metavar="DIR",
        help="Model directory: rows that are too long for it, or for --max-length, are reported.",
        show_default=False,
    ),
]
MaxLength = Annotated[
    int, typer.Option("--max-length", metavar="N", min=1, help="data.max_length of the recipe, for --model.")
]
Split = Annotated[str, typer.Option("--split", help="Split of a Hub dataset or `datasets` folder.")]
WriteClean = Annotated[
    Path | None,
    typer.Option(
        "--write-clean",
        metavar="FILE|DIR",
        help="Write the data without faulty rows, and FILE.dropped.jsonl with each dropped row and the reason.",
        show_default=False,
    ),
]
Output = Annotated[
    Path | None,
    typer.Option(
        "--output", metavar="FILE", help="Write a page with the rows to look at, .html or .md.", show_default=False
    ),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print the audit as JSON.")]


def audit(
    data: Data,
    against: Against = None,
    annotator: Annotator = None,
    model: Model = None,
    max_length: MaxLength = 1024,
    split: Split = "train",
    write_clean: WriteClean = None,
    output: Output = None,
    as_json: AsJson = False,
) -> int:
    """Audit preference data: repeats, contradictions, length, agreement, poison. Exit code 2: rows cannot be used."""
    from orchestrator.audit import show
    from orchestrator.audit.audit import audit as examine
    from orchestrator.audit.clean import check_target
    from orchestrator.audit.clean import write_clean as write
    from orchestrator.audit.reading import limits_of
    from orchestrator.cli.report import is_markdown

    markdown = output is not None and is_markdown(output)
    if write_clean is not None:
        check_target(data, write_clean)
    limits = None if model is None else limits_of(model, max_length)
    result = examine(data, split=split, annotator=annotator, against=against, limits=limits)
    if as_json:
        say(json.dumps(show.as_json(result), indent=2, ensure_ascii=False))
    else:
        show.show(result)
    if output is not None:
        from orchestrator.audit.page import page
        from orchestrator.report.page import write as write_page

        made = page(result, split)
        write_page(output, made.markdown if markdown else made.html)
        report(str(output))
    if write_clean is not None:
        clean = write(data, split, result.findings, write_clean)
        report(f"{clean.path}: {clean.kept:,} rows; {clean.left_out:,} left out, listed in {clean.dropped}")
    return 0 if result.is_usable else UNUSABLE
