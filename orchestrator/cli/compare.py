"""Command `rlhf compare`: compare methods at equal compute and at equal KL to the base model."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from orchestrator.cli.options import directory_option
from orchestrator.errors import BadInput, Problem
from orchestrator.terminal import say

if TYPE_CHECKING:
    from orchestrator.compare.runs import Outcome

RUN_LOST = 4


def add_to(app: typer.Typer) -> None:
    app.command()(compare)


def compare(
    inputs: Annotated[
        list[Path],
        typer.Argument(
            metavar="COMPARE.yaml | RUN RUN...",
            help="Comparison (YAML file), e.g. configs/quickstart/compare.yaml, or at least two finished runs.",
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
    fresh: Annotated[
        bool,
        typer.Option(
            "--fresh", help="Start runs over whose data or code changed. Existing runs are kept as NAME.old-N."
        ),
    ] = False,
) -> int:
    """Compare methods at equal compute.

    Run the missing runs of a comparison, or compare finished runs. Write report.html, report.md and comparison.json.
    Exit code: 4 if runs failed, else 0.
    """
    if len(inputs) == 1 and not inputs[0].is_dir():
        _refuse_options(gold=gold, output=output)
        return _run_comparison(inputs[0], dry_run=dry_run, fresh=fresh)
    from orchestrator.compare.runs import compare_runs
    from orchestrator.rundir.directory import RunDirectory

    if len(inputs) == 1 or dry_run:
        why, fix = "runs are compared with each other", "give at least two runs, or a comparison: COMPARE.yaml"
        raise BadInput(Problem(what=f"one run: {inputs[0]}", where="rlhf compare", why=why, fix=fix))
    directories = [RunDirectory.open(path) for path in dict.fromkeys(inputs)]
    return _show(compare_runs(directories, gold=gold, output=output or Path("runs/comparison")))


def _run_comparison(path: Path, *, dry_run: bool, fresh: bool) -> int:
    from orchestrator.compare.known_optimum import known_card, read_known
    from orchestrator.compare.recipe import load_comparison

    comparison = load_comparison(path)
    known = comparison.config.known
    extra = [known_card(read_known(path.parent / known))] if known is not None else []
    if dry_run:
        for run in comparison.runs:
            say(f"{run.task}: {run.method} {run.setting}, seed {run.seed}: {run.config.directory}")
        return 0
    from orchestrator.preflight.preflight import preflight

    for run in comparison.runs:
        preflight(run.recipe)
    from orchestrator.cluster.ray_start import one_for_all
    from orchestrator.compare.runs import run_comparison
    from orchestrator.pipeline.roles import preloaded
    from orchestrator.rundir.directory import RunDirectory
    from orchestrator.rundir.existing import move_aside

    for run in comparison.runs:
        move_aside(run.recipe, fresh=fresh, restart_last=False, say=say)
    missing = [run.config for run in comparison.runs if not RunDirectory(run.config.directory).is_complete]
    with ExitStack() as stack:
        if missing:
            stack.enter_context(preloaded(missing[0].cluster))
            stack.enter_context(one_for_all(missing[0].cluster))
        return _show(run_comparison(comparison, say=say, extra=extra))


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
