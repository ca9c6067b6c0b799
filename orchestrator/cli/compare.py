"""Command `rlhf compare`: compare methods at equal compute and at equal KL to the base model."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from orchestrator.cli.options import directory_option
from orchestrator.cli.plan import DEFAULT_GPU, DOES_NOT_FIT, Gpus, Price
from orchestrator.errors import BadInput, Problem
from orchestrator.terminal import say

if TYPE_CHECKING:
    from orchestrator.compare.runs import Devices, Outcome
    from orchestrator.config import RunConfig

RUN_LOST = 4


def add_to(app: typer.Typer) -> None:
    app.command()(compare)


def compare(
    inputs: Annotated[
        list[str],
        typer.Argument(
            metavar="COMPARE.yaml [a.b=c]... | RUN RUN...",
            help="Comparison (YAML file) with overrides, e.g. configs/quickstart/compare.yaml seeds=[0], or at least "
            "two finished runs.",
        ),
    ],
    gold: Annotated[
        str | None,
        typer.Option(
            "--gold",
            metavar="SCORER",
            help="Scorer that decides which answer is better (only when comparing finished runs).",
        ),
    ] = None,
    output: Annotated[
        Path | None, directory_option("runs/comparison", use="only when comparing finished runs; ")
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="List the runs of the comparison without starting any.")
    ] = False,
    plan: Annotated[
        bool, typer.Option("--plan", help="Estimate time and cost of every run and method without starting any.")
    ] = False,
    gpus: Gpus = None,
    price: Price = None,
    fresh: Annotated[
        bool,
        typer.Option(
            "--fresh", help="Start runs over whose data or code changed. Existing runs are kept as NAME.old-N."
        ),
    ] = False,
) -> int:
    """Compare methods at equal compute.

    Run the missing runs of a comparison, or compare finished runs. Write report.html, report.md and comparison.json.
    Exit code: 3 if a run does not fit (--plan), 4 if runs failed, else 0.
    """
    overrides = [text for text in inputs if "=" in text and not Path(text).exists()]
    paths = [Path(text) for text in inputs if text not in overrides]
    if len(paths) == 1 and not paths[0].is_dir():
        _refuse_options(gold=gold, output=output)
        if plan:
            return _plan_comparison(paths[0], overrides, gpus=gpus, price=price)
        return _run_comparison(paths[0], overrides, dry_run=dry_run, fresh=fresh)
    from orchestrator.compare.runs import compare_runs
    from orchestrator.rundir.directory import RunDirectory

    if len(paths) < 2 or dry_run or plan or overrides:
        what = f"one run: {paths[0]}" if len(paths) == 1 else " ".join(inputs)
        why, fix = "runs are compared with each other", "give at least two runs, or a comparison: COMPARE.yaml"
        raise BadInput(Problem(what=what, where="rlhf compare", why=why, fix=fix))
    directories = [RunDirectory.open(path) for path in dict.fromkeys(paths)]
    return _show(compare_runs(directories, gold=gold, output=output or Path("runs/comparison")))


def _plan_comparison(path: Path, overrides: list[str], *, gpus: str | None, price: float | None) -> int:
    from orchestrator.compare.pricing import price_comparison, price_lines
    from orchestrator.compare.recipe import load_comparison
    from orchestrator.plan.gpus import parse_gpus

    comparison = load_comparison(path, overrides)
    count, gpu = parse_gpus(gpus or DEFAULT_GPU)
    priced = price_comparison(comparison, gpu, given=count, price=price)
    for line in price_lines(priced, comparison):
        say(line)
    return 0 if priced.fits else DOES_NOT_FIT


def _run_comparison(path: Path, overrides: list[str], *, dry_run: bool, fresh: bool) -> int:
    from orchestrator.compare.known_optimum import known_card, read_known
    from orchestrator.compare.recipe import load_comparison

    comparison = load_comparison(path, overrides)
    known = comparison.config.known
    extra = [known_card(read_known(path.parent / known))] if known is not None else []
    if dry_run:
        for run in comparison.runs:
            say(f"{run.task}: {run.method} {run.setting}, seed {run.seed}: {run.config.directory}")
        return 0
    from orchestrator.preflight.preflight import preflight

    for run in comparison.runs:
        preflight(run.recipe)
        if any(stage.cluster.device == "cuda" for stage in run.recipe.stages):
            from orchestrator.plan.refuse import refuse_on_every_gpu

            refuse_on_every_gpu(run.recipe.stages)
    from orchestrator.cluster.ray_start import one_for_all
    from orchestrator.compare.runs import remarks_on, run_comparison
    from orchestrator.pipeline.roles import preloaded
    from orchestrator.rundir.directory import RunDirectory
    from orchestrator.rundir.existing import move_aside

    for remarks in remarks_on(comparison).values():
        for remark in remarks:
            say(remark)
    for run in comparison.runs:
        move_aside(run.recipe, fresh=fresh, restart_last=False, say=say)
    missing = [run.config for run in comparison.runs if not RunDirectory(run.config.directory).is_complete]
    with ExitStack() as stack:
        devices = None
        if missing:
            stack.enter_context(preloaded(missing[0].cluster))
            stack.enter_context(one_for_all(missing[0].cluster))
            devices = _devices(comparison.config.parallel, missing)
        return _show(run_comparison(comparison, say=say, extra=extra, devices=devices))


def _devices(parallel: Literal["auto"] | int, missing: Sequence[RunConfig]) -> Devices | None:
    """Return the devices that the missing runs share; None: one run at a time.

    Without GPUs, `auto` shares this machine's cores: more runs than cores would slow each other down, and so change
    what they cost.
    """
    from orchestrator.compare.runs import Devices

    if parallel == 1 or len(missing) == 1:
        return None
    most = math.inf if parallel == "auto" else parallel
    if missing[0].cluster.device != "cpu":
        from orchestrator.cluster.ray_devices import num_gpus

        if gpus := num_gpus(missing[0].cluster):
            return Devices(number=gpus, cuda=True, most=most)
    return Devices(number=(os.cpu_count() or 1) if parallel == "auto" else math.inf, cuda=False, most=most)


def _show(outcome: Outcome) -> int:
    from orchestrator.compare.answer import sentences

    for answer in outcome.answers:
        say("")
        say(f"{answer.task}: {answer.headline}")
        for line in sentences(answer):
            say(f"  {line}")
    say("")
    for path in outcome.files:
        say(str(path))
    for line in outcome.lost:
        say(f"missing: {line}")
    return RUN_LOST if outcome.lost else 0


def _refuse_options(**options: object) -> None:
    for name, value in options.items():
        if value is not None:
            why, fix = "the comparison file sets it", f"remove --{name}"
            raise BadInput(Problem(what=f"--{name} {value}", where="command line", why=why, fix=fix))
