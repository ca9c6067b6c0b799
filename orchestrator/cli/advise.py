"""Command `rlhf advise`: recommend a method for given data and GPUs."""

from __future__ import annotations

import json
from typing import Annotated

import typer

from orchestrator.terminal import say


def add_to(app: typer.Typer) -> None:
    app.command()(advise)


def advise(
    data: Annotated[
        list[str],
        typer.Argument(
            metavar="DATA [DATA ...]",
            help="Pairs, ratings, ranks, labels, demonstrations or prompts: files, folders or Hub datasets.",
            show_default=False,
        ),
    ],
    gpus: Annotated[str, typer.Option("--gpus", metavar="64xH100", help="Number and type of the GPUs.")],
    model: Annotated[
        str | None,
        typer.Option(
            "--model", metavar="llama-3-70b", help="Model directory, Hub id or known name (default: an 8B model)."
        ),
    ] = None,
    verifiable: Annotated[
        bool, typer.Option("--verifiable", help="State that a program can check whether an answer is right.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the advice as JSON.")] = False,
) -> int:
    """Recommend a method for these data and GPUs, with reasons, cost, and what would change the advice."""
    from orchestrator.advise import advice, show
    from orchestrator.plan.gpus import parse_gpus

    count, gpu = parse_gpus(gpus)
    result = advice.advise(data, count, gpu, model=model, verifiable=verifiable)
    if as_json:
        say(json.dumps(show.as_json(result), indent=2, ensure_ascii=False))
    else:
        show.show(result)
    return 0
