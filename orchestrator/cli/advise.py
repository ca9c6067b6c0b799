"""`rlhf advise`: which method to try first."""

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
            help="Pairs, ratings, ranks, labels, demonstrations or prompts: files, folders or hub datasets.",
            show_default=False,
        ),
    ],
    gpus: Annotated[str, typer.Option("--gpus", metavar="64xH100", help="How many and which.")],
    model: Annotated[
        str | None, typer.Option("--model", metavar="llama-3-70b", help="A directory or a name; default: 8B.")
    ] = None,
    verifiable: Annotated[bool, typer.Option("--verifiable", help="A program can check the answers.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="For programs.")] = False,
) -> int:
    """Say which method to try first on these data and GPUs, why, what it costs, and what would change the answer."""
    from orchestrator.advise import advice, show
    from orchestrator.plan.gpus import parse_gpus

    count, gpu = parse_gpus(gpus)
    found = advice.advise(data, count, gpu, model=model, verifiable=verifiable)
    if as_json:
        say(json.dumps(show.as_json(found), indent=2, ensure_ascii=False))
    else:
        show.show(found)
    return 0
