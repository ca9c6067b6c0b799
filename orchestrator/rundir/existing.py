"""Existing run directories: decide whether each stage of a recipe resumes, is reused, starts over or is refused.

    no directory                                    starts
    same recipe, data, code and models              resumes, or is reused if it is complete
    something differs, no step was completed        starts over; the existing run is moved aside
    something differs                               refused with the differences; `--fresh` starts over

The decision is taken before anything is started.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from orchestrator import disk
from orchestrator.config.recipe import Recipe
from orchestrator.config.run import RunConfig
from orchestrator.config.values import show
from orchestrator.data.sources import local
from orchestrator.errors import BadInput, Problem, Problems, ResumeError, RlhfError
from orchestrator.rundir.directory import RunDirectory
from orchestrator.rundir.inputs import MAY_CHANGE, changes, inputs_of, named
from orchestrator.rundir.ledger import Fact, read_ledger
from workers.config import GenerateConfig

SHOWN = 6
BEGUN = {Fact.generated, Fact.scored, Fact.trained, Fact.committed}
"""Facts after which a run holds results that depend on its inputs."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Difference:
    """One difference between an existing run and the recipe.

    Example: `Difference(key="seed", words="seed was 0 and is 3", is_setting=True)`.
    """

    key: str
    words: str
    is_setting: bool  # False: the setting is the same, but the file or model that it names has changed


@dataclass(frozen=True, kw_only=True, slots=True)
class StartOver:
    """An existing run that must be moved aside, and the reason in one line."""

    directory: RunDirectory
    why: str


def move_aside(recipe: Recipe, *, fresh: bool = False, restart_last: bool = True, say: Callable[[str], None]) -> None:
    """Move aside the existing runs of stages that start over, and report each. See `check_existing`."""
    stored = {config.name: config.storage for config in recipe.stages if config.storage is not None}
    for run in check_existing(recipe, fresh=fresh, restart_last=restart_last):
        if (url := stored.get(run.directory.name)) is not None:
            where, why = f"{url}/{run.directory.name}", f"{run.why}, and what is in storage is never replaced"
            fix = "choose a new name: name=NAME; or delete the run there and here"
            raise BadInput(Problem(what="cannot start over", where=where, why=why, fix=fix))
        target = run.directory.set_aside()
        say(f"{run.directory.name} starts over: {run.why}; the existing run is kept as {target.name}")


def check_existing(recipe: Recipe, *, fresh: bool = False, restart_last: bool = True) -> list[StartOver]:
    """Return the existing runs that must be moved aside before the recipe can run. Change nothing on disk.

    Args:
        fresh: start over each stage that differs from its existing run, and the last stage.
        restart_last: with `fresh`, start over the last stage even if nothing differs.

    Raises:
        BadInput: existing runs differ from the recipe and are not to be replaced; the error names all of them.
    """
    problems, aside, retrained = Problems(), [], set[str]()
    for config in recipe.stages:
        directory, forced = _directory(config), fresh and restart_last and config is recipe.stages[-1]
        if not directory.resolved.is_file():
            retrained |= {str(artifact) for artifact in config.artifacts}
            continue
        try:
            differences = list(_differences(config, directory, retrained))
        except RlhfError as error:  # resolved.json is damaged
            if not fresh:
                problems.extend(error.problems)
                continue
            differences = [Difference(key="", words="its resolved.json cannot be read", is_setting=True)]
        if differences or not directory.is_complete or forced:
            retrained |= {str(artifact) for artifact in config.artifacts}
        if forced or (fresh and differences):
            why = _summary(differences) if differences else "--fresh was given"
            aside.append(StartOver(directory=directory, why=why))
        elif differences and not directory.is_complete and not _has(directory, {Fact.committed}):
            why = f"{_summary(differences)}, and no step was completed"
            aside.append(StartOver(directory=directory, why=why))
        elif differences:
            problems.append(_refusal(directory, differences))
    problems.raise_if_any()
    return aside


def refuse_other_inputs(directory: RunDirectory, config: RunConfig) -> None:
    """Check that the inputs a run has used so far are unchanged before it resumes.

    Data that the run trains on are compared later, row by row, if there is a checkpoint. Rewards and evaluation data
    may change.

    Raises:
        ResumeError: inputs have changed; the error names all of them.
    """
    then = directory.read_inputs()
    if then is None or not _has(directory, BEGUN):
        return
    compared_later = ("data.prompts", "data.dataset") if _has(directory, {Fact.checkpoint}) else ()
    changed = changes(then, inputs_of(config), config)
    later = {key for key in changed if key.startswith(compared_later)}
    refused = [words for key, words in changed.items() if key not in later and not _may_change(key)]
    if refused:
        why = "the run's results so far were computed from the previous contents"
        fix = (
            f"restore them, or start over: rlhf run RECIPE --fresh (the existing run is kept as {directory.name}.old-N)"
        )
        raise ResumeError(Problem(what="; ".join(refused), where=str(directory.path), why=why, fix=fix))


def write_inputs(directory: RunDirectory, config: RunConfig) -> list[str]:
    """Record the inputs of an attempt. Return a line for each input that changed since the previous attempt."""
    then, now = directory.read_inputs(), inputs_of(config)
    disk.write_atomic(directory.inputs, json.dumps(now, indent=2) + "\n")
    changed = {} if then is None or not _has(directory, BEGUN) else changes(then, now, config)
    return [f"{words} since the previous attempt; the new contents are used from now on" for words in changed.values()]


# ------------------------------------------------------------------------------------------------ differences


def _differences(config: RunConfig, directory: RunDirectory, retrained: set[str]) -> Iterator[Difference]:
    """Yield changed settings, then changed inputs, then models that an earlier stage is about to train again."""
    for key, before, after in directory.differs_from(config):
        yield Difference(key=key, words=f"{key} was {show(before)} and is {show(after)}", is_setting=True)
    pending = {key: path for key, path in named(config).items() if path in retrained}
    then = directory.read_inputs()
    changed = {} if then is None else changes(then, inputs_of(config), config)
    if directory.is_complete or _has(directory, BEGUN):
        changed = {key: words for key, words in changed.items() if key not in pending}
        changed |= {key: f"{key} ({path}) is about to be trained again" for key, path in pending.items()}
        yield from (Difference(key=key, words=words, is_setting=False) for key, words in changed.items())


def _refusal(directory: RunDirectory, differences: Sequence[Difference]) -> Problem:
    settings = any(d.is_setting for d in differences)
    can_resume = not directory.is_complete and (settings or all(_may_change(d.key) for d in differences))
    resume = f"resume the existing run: {directory.resume_command}; or " if can_resume else ""
    if all(_is_of_filtering(directory, d) for d in differences):
        resume += f"filter its samples anew: rlhf filter {directory.path} a.b=c --to DIR; or "
    return Problem(
        what="belongs to a run with another config" if settings else "belongs to a run with other inputs",
        where=str(directory.path),
        why=_summary(differences),
        fix=f"{resume}choose a new name: name=NAME; or start over: --fresh (the existing run is kept as "
        f"{directory.name}.old-N)",
    )


def _is_of_filtering(directory: RunDirectory, difference: Difference) -> bool:
    """Return whether a run that writes a data set need not sample again for the sake of this difference."""
    section, _, key = difference.key.partition(".")
    return (
        section == "algorithm"
        and key.partition(".")[0] in GenerateConfig.OF_FILTERING
        and directory.config().algorithm.type == "generate"
    )


def _directory(config: RunConfig) -> RunDirectory:
    return RunDirectory(local(config.output_dir).absolute() / config.name)


def _has(directory: RunDirectory, facts: set[Fact]) -> bool:
    try:
        return any(record.fact in facts for record in read_ledger(directory.ledger)[0])
    except (RlhfError, OSError):
        return True  # an unreadable ledger may stand for finished work: keep it


def _may_change(key: str) -> bool:
    return key.startswith(MAY_CHANGE)


def _summary(differences: Sequence[Difference]) -> str:
    more = f"; and {len(differences) - SHOWN} more" if len(differences) > SHOWN else ""
    return "; ".join(d.words for d in differences[:SHOWN]) + more
