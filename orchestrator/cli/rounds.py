"""Commands `rlhf export` and `rlhf pair`: the model of one round of a run, and other pairs from its samples."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from orchestrator.cli.options import ResumeOverrides, RunPath
from orchestrator.errors import BadInput, Problem, Problems
from orchestrator.terminal import say

if TYPE_CHECKING:
    from orchestrator.rundir.directory import RunDirectory
    from workers.config import PairsConfig

Round = Annotated[int, typer.Option("--round", metavar="N", min=1, help="Number of the round, from 1.")]
PairSettings = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="a.b=c",
        help="Override a setting of the pairs, e.g. algorithm.pairs.per_prompt=2. Default: as in the run.",
        show_default=False,
    ),
]


def add_to(app: typer.Typer) -> None:
    app.command()(export)
    app.command()(pair)


def export(
    run_directory: RunPath,
    round: Round,
    output: Annotated[
        Path | None,
        typer.Option(
            "--output",
            metavar="DIR",
            help="Directory for the model (default: RUN/exports/round-N).",
            show_default=False,
        ),
    ] = None,
    overrides: ResumeOverrides = None,
) -> int:
    """Write the model of one round (or step) of a run as a Hugging Face directory.

    A round that only a checkpoint has is loaded by the run's policy workers, on the run's cluster.
    """
    from orchestrator.driver.export_round import export_round
    from orchestrator.driver.resume_overrides import apply_overrides
    from orchestrator.rundir.directory import RunDirectory

    directory = RunDirectory.open(run_directory)
    config = apply_overrides(directory, overrides or ())
    target = (output or directory.path / "exports" / f"round-{round}").absolute()
    export_round(directory, config, round, target, say=say)
    say(f"model: {target}")
    return 0


def pair(
    run_directory: RunPath,
    round: Round,
    output: Annotated[
        Path, typer.Option("--output", metavar="FILE", help="Parquet file for the pairs: a preference dataset.")
    ],
    overrides: PairSettings = None,
) -> int:
    """Make preference pairs from the scored samples of a round again, without sampling. Needs no GPU and no model."""
    from orchestrator.rundir.directory import RunDirectory

    directory = RunDirectory.open(run_directory)
    groups, settings = _groups(directory, round), _settings(directory, overrides or ())
    if output.exists():
        why, fix = "it would be overwritten", "give another file with --output, or remove it"
        raise BadInput(Problem(what="already exists", where=str(output), why=why, fix=fix))
    from workers.files.groups_file import GroupsError
    from workers.files.round_files import pair_again

    try:
        made = pair_again(groups, output.absolute(), settings)
    except GroupsError as error:
        fix = "restore the file from a backup"
        raise BadInput(Problem(what="cannot be read", where=str(groups), why=str(error), fix=fix)) from None
    if not made["pairs/count"]:
        why = "no group has two completions that differ, and on which the rewards agree, enough"
        fix = "lower min_margin or min_agreement, or check the scores"
        raise BadInput(Problem(what="there is no pair", where=str(groups), why=why, fix=fix))
    disputed = f"{made['pairs/disagreement']:.0f} disputed, " if "pairs/disagreement" in made else ""
    say(
        f"pairs: {made['pairs/count']:.0f}, mean margin {made['pairs/margin']:.3g}; left out: "
        f"{made['pairs/duplicates']:.0f} duplicates, {disputed}{made['pairs/capped']:.0f} above max_pairs; "
        f"groups without a pair: {made['pairs/saturated_groups']:.1%}"
    )
    say(f"written to {output}  (a preference dataset: data.dataset)")
    return 0


def _groups(directory: RunDirectory, round: int) -> Path:
    """Return the file with the scored groups of a round."""
    from workers.files.groups_file import GROUPS

    if (path := directory.round(round) / GROUPS).is_file():
        return path
    stored = directory.rounds_with(GROUPS)
    kept_by = "only iterative DPO (type dpo with data.prompts) keeps them, with algorithm.pairs.keep_groups true"
    raise BadInput(
        Problem(
            what=f"the samples of round {round} are not stored",
            where=str(path),
            why=f"the run has those of round {', '.join(map(str, stored))}" if stored else "the run has none",
            fix="give one of them with --round" if stored else kept_by,
        )
    )


def _settings(directory: RunDirectory, overrides: Sequence[str]) -> PairsConfig:
    """Return the settings of the run's pairs, with `overrides` applied.

    Raises:
        BadInput: an override cannot be read, is of another setting, or asks for gold answers that were not stored.
    """
    from orchestrator.config.document import Document, Location
    from orchestrator.config.overrides import apply, parse_overrides
    from orchestrator.config.recipe import from_resolved, resolved
    from workers.config import DpoConfig

    config, problems = directory.config(), Problems()
    document = Document(data=resolved(config), places={(): Location(text=str(directory.resolved))})
    for override in parse_overrides(overrides, [config.name], problems):
        if override.path[:2] != ("algorithm", "pairs"):
            why, fix = "the samples and their scores are given", "give settings of algorithm.pairs only"
            problems.add(override.text, where="command line", why=why, fix=fix)
        else:
            apply(override, document, problems)
    problems.raise_if_any()
    changed = from_resolved(document.data, "command line").algorithm
    assert isinstance(config.algorithm, DpoConfig), "only DPO has stored groups"
    assert isinstance(changed, DpoConfig)
    if changed.pairs.gold != "never" and config.algorithm.pairs.gold == "never":
        why, fix = "the run did not use gold answers, so that none is stored", "remove it"
        raise BadInput(
            Problem(what=f"algorithm.pairs.gold = {changed.pairs.gold}", where="command line", why=why, fix=fix)
        )
    return changed.pairs
