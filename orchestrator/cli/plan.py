"""`rlhf plan`: will it fit, how long, what does it cost."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from orchestrator.errors import BadInput, Problem
from orchestrator.terminal import say

if TYPE_CHECKING:
    from orchestrator.plan.constants import Constants
    from orchestrator.plan.plan import Plan

DEFAULT_GPU = "H100"
DOES_NOT_FIT = 3  # as a run says that its cluster is too small


def add_to(app: typer.Typer) -> None:
    app.command()(plan)


def plan(
    arguments: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="RECIPE [a.b=c]",
            help="A recipe, with values to change; several with --compare.",
            show_default=False,
        ),
    ] = None,
    gpus: Annotated[
        str | None,
        typer.Option("--gpus", metavar="64xH100", help="How many and which; H100 (default): as many as it asks for."),
    ] = None,
    compare: Annotated[bool, typer.Option("--compare", help="Several recipes side by side.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="For programs: bytes and seconds.")] = False,
    price: Annotated[float | None, typer.Option("--price", metavar="USD", help="Of a GPU-hour.", min=0.0)] = None,
    prompt_tokens: Annotated[float | None, typer.Option(help="Mean; else half of what is allowed.", min=1)] = None,
    response_tokens: Annotated[float | None, typer.Option(help="Mean of a completion; likewise.", min=1)] = None,
    rows: Annotated[int | None, typer.Option(help="Of the dataset, for the time of a whole run.", min=1)] = None,
    calibrate: Annotated[
        Path | None,
        typer.Option("--calibrate", metavar="RUN", help="Fit the constants to this finished run and use them."),
    ] = None,
) -> int:
    """Say whether a recipe fits, how long a step takes and what it costs, without starting anything.

    Exit code 3 when it does not fit as it is written (with --compare: in no placement), and 0 otherwise."""
    from orchestrator.config import load
    from orchestrator.plan.gpus import parse_gpus
    from orchestrator.plan.plan import make_plan
    from orchestrator.plan.work import Lengths

    given = arguments or []
    paths = [Path(text) for text in given if "=" not in text]
    overrides = [text for text in given if "=" in text]
    if not paths and calibrate is None:
        raise BadInput(Problem(what="no recipe", where="rlhf plan", fix="rlhf plan RECIPE --gpus 64xH100"))
    if len(paths) > 1 and not compare:
        raise BadInput(
            Problem(
                what=f"{len(paths)} recipes", where="rlhf plan", why="one is planned at a time", fix="add --compare"
            )
        )
    constants, device = _calibrated(calibrate, alone=not paths, as_json=as_json)
    if not paths:
        return 0
    lengths = Lengths(prompt=prompt_tokens, response=response_tokens, rows=rows)
    count, gpu = parse_gpus(gpus or device)
    if calibrate is not None and gpu.name != device and not as_json:
        say(f"these constants are of {device}: on {gpu.name} efficiencies differ\n")
    options: dict[str, Any] = {"given": count, "price": price, "lengths": lengths, "constants": constants}
    plans: list[Plan] = []
    for recipe in (load(path, overrides) for path in paths):
        for stage in recipe.stages[-1:] if compare else recipe.stages:
            plans.append(make_plan(stage, gpu, before=recipe.before(stage), **options))
    _print(plans, compare=compare, as_json=as_json)
    fitting = [plan.fits or bool(compare and plan.placements) for plan in plans]
    return 0 if all(fitting) else DOES_NOT_FIT


def _print(plans: list[Plan], *, compare: bool, as_json: bool) -> None:
    if as_json:
        from orchestrator.plan.as_json import as_json as to_json

        found = [to_json(p) for p in plans]
        say(json.dumps(found if compare or len(found) > 1 else found[0], indent=2))
        return
    from orchestrator.plan.show import show_comparison, show_plan

    if compare:
        show_comparison(plans)
        return
    for i, one in enumerate(plans):
        if i:
            say("")
        show_plan(one)


def _calibrated(run: Path | None, *, alone: bool, as_json: bool) -> tuple[Constants, str]:
    """The constants to plan with, and the kind of GPU that they are of."""
    from orchestrator.plan.constants import DEFAULT

    if run is None:
        return DEFAULT, DEFAULT_GPU
    from orchestrator.plan.calibrate import calibrate, describe
    from orchestrator.rundir.directory import RunDirectory

    found = calibrate(RunDirectory.open(run))
    if not as_json:
        say("\n".join(describe(found)) + ("" if alone else "\n"))
    elif alone:
        say(json.dumps(asdict(found), indent=2))
    return found.constants, found.device.name
