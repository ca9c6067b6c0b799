"""Command `rlhf plan`: estimate memory, time and cost of a recipe."""

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
DOES_NOT_FIT = 3  # exit code, the same as of a run on a cluster that is too small


Inputs = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="RECIPE [a.b=c]",
        help="Recipe with overrides, e.g. recipe.yaml rollout.num_engines=4; several recipes with --compare.",
        show_default=False,
    ),
]
Gpus = Annotated[
    str | None,
    typer.Option(
        "--gpus",
        metavar="64xH100",
        help="Number and type of the GPUs; a type alone takes as many as the recipe asks for (default: H100).",
    ),
]
Compare = Annotated[bool, typer.Option("--compare", help="Compare several recipes.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print the plan as JSON, in bytes and seconds.")]
Price = Annotated[
    float | None,
    typer.Option(
        "--price", metavar="USD", help="Price of one GPU-hour in USD (default: a typical price of the GPU).", min=0.0
    ),
]
LENGTH = "(default: half the maximum; for a dataset a quarter of data.max_length)."
PromptTokens = Annotated[
    float | None, typer.Option(metavar="TOKENS", help=f"Mean prompt length in tokens {LENGTH}", min=1)
]
ResponseTokens = Annotated[
    float | None, typer.Option(metavar="TOKENS", help=f"Mean completion length in tokens {LENGTH}", min=1)
]
NumRows = Annotated[
    int | None,
    typer.Option(
        metavar="N",
        help="Number of rows of data.dataset, or of prompts to generate from, to estimate the total time.",
        min=1,
    ),
]
Calibrate = Annotated[
    Path | None,
    typer.Option(
        "--calibrate",
        metavar="RUN",
        help="Finished run to fit the planner's constants to; its GPU type is then the default of --gpus.",
    ),
]


def add_to(app: typer.Typer) -> None:
    app.command()(plan)


def plan(
    arguments: Inputs = None,
    gpus: Gpus = None,
    compare: Compare = False,
    as_json: AsJson = False,
    price: Price = None,
    prompt_tokens: PromptTokens = None,
    response_tokens: ResponseTokens = None,
    rows: NumRows = None,
    calibrate: Calibrate = None,
) -> int:
    """Estimate memory, time per step and cost of a recipe without starting it.

    Exit code: 3 if the recipe does not fit as written, or one of its calls may not end within its time limit (with
    --compare: if no placement fits), else 0.
    """
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
            Problem(what=f"{len(paths)} recipes", where="rlhf plan", why="one recipe at a time", fix="add --compare")
        )
    constants, device = _calibrated(calibrate, alone=not paths, as_json=as_json)
    if not paths:
        return 0
    lengths = Lengths(prompt=prompt_tokens, response=response_tokens, rows=rows)
    count, gpu = parse_gpus(gpus or device)
    if calibrate is not None and gpu.name != device and not as_json:
        say(f"these constants were fitted on {device}: efficiencies differ on {gpu.name}\n")
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

        values = [to_json(p) for p in plans]
        say(json.dumps(values if compare or len(values) > 1 else values[0], indent=2))
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
    """Return the constants to plan with, and the GPU type that they were fitted on."""
    from orchestrator.plan.constants import DEFAULT

    if run is None:
        return DEFAULT, DEFAULT_GPU
    from orchestrator.plan.calibrate import calibrate, describe
    from orchestrator.rundir.directory import RunDirectory

    result = calibrate(RunDirectory.open(run))
    if not as_json:
        say("\n".join(describe(result)) + ("" if alone else "\n"))
    elif alone:
        say(json.dumps(asdict(result), indent=2))
    return result.constants, result.device.name
