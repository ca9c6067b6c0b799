"""`rlhf compare`: which method is ahead at equal compute, and at which distance from the base."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from orchestrator.errors import BadInput, Problem
from orchestrator.terminal import say

if TYPE_CHECKING:
    from orchestrator.compare.runs import Outcome

RUN_LOST = 4


def add_to(app: typer.Typer) -> None:
    app.command()(compare)


def compare(
    what: Annotated[
        list[Path],
        typer.Argument(
            metavar="COMPARE.yaml | RUN RUN...",
            help="A comparison such as configs/quickstart/compare.yaml, or finished runs.",
        ),
    ],
    gold: Annotated[
        str | None,
        typer.Option("--gold", metavar="SCORER", help="Of finished runs: who says which answer is better."),
    ] = None,
    output: Annotated[
        Path | None, typer.Option("--output", metavar="DIR", help="Of finished runs: by default runs/comparison.")
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="List the runs of COMPARE.yaml and stop.")] = False,
    fresh: Annotated[
        bool, typer.Option("--fresh", help="Begin anew those of which data or code changed; NAME.old-N is kept.")
    ] = False,
) -> int:
    """Compare methods at equal compute: run what is not done yet, or take finished runs as they are.

    Writes report.html, report.md and comparison.json. Exit code 4 when runs were lost, and 0 otherwise."""
    if len(what) == 1 and not what[0].is_dir():
        _refuse(gold=gold, output=output)
        return _of_recipes(what[0], dry_run=dry_run, fresh=fresh)
    from orchestrator.compare.runs import compare_runs
    from orchestrator.rundir.directory import RunDirectory

    if len(what) == 1 or dry_run:
        why, fix = "runs are compared with each other", "give two runs or more, or a comparison: COMPARE.yaml"
        raise BadInput(Problem(what=f"one run: {what[0]}", where="rlhf compare", why=why, fix=fix))
    directories = [RunDirectory.open(path) for path in dict.fromkeys(what)]
    return _tell(compare_runs(directories, gold=gold, output=output or Path("runs/comparison")))


def _of_recipes(path: Path, *, dry_run: bool, fresh: bool) -> int:
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
    from orchestrator.rundir.directory import RunDirectory
    from orchestrator.rundir.existing import settle

    for run in comparison.runs:
        settle(run.recipe, fresh=fresh, last_too=False, say=say)
    left = [run.config for run in comparison.runs if not RunDirectory(run.config.directory).is_complete]
    with one_for_all(left[0].cluster) if left else nullcontext():
        return _tell(run_comparison(comparison, say=say, extra=extra))


def _tell(outcome: Outcome) -> int:
    for answer in outcome.answers:
        say("")
        say(f"{answer.task}: {answer.headline}")
        from orchestrator.compare.answer import sentences

        for line in sentences(answer):
            say(f"  {line}")
    say("")
    for path in outcome.files:
        say(str(path))
    for line in outcome.lost:
        say(f"missing: {line}")
    return RUN_LOST if outcome.lost else 0


def _refuse(**given: object) -> None:
    for name, value in given.items():
        if value is not None:
            why, fix = "a comparison file says it itself", f"remove --{name}"
            raise BadInput(Problem(what=f"--{name} {value}", where="command line", why=why, fix=fix))
