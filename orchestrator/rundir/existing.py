"""What it means to run a recipe when directories of its runs are there already: each stage goes on, is reused, begins
anew, or is refused, before anything is started.

    nothing there                                   begins
    the same recipe, data, code and models          goes on, or is reused when it is complete
    something differs, no step was finished         begins anew; what is there is moved aside
    something differs                               refused, with what differs; `--fresh` begins anew
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
from orchestrator.errors import Problem, Problems, ResumeError, RlhfError
from orchestrator.rundir.directory import RunDirectory
from orchestrator.rundir.inputs import MAY_BE_MENDED, changes, inputs_of, named
from orchestrator.rundir.ledger import Fact, read_ledger

SHOWN = 6
BEGUN = {Fact.generated, Fact.scored, Fact.trained, Fact.committed}
"""Facts after which a run holds something that came of its inputs."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Differs:
    """Example: `Differs(key="seed", words="seed was 0 and is 3", is_setting=True)`."""

    key: str
    words: str
    is_setting: bool  # False: what a setting names is there, and holds something else


@dataclass(frozen=True, kw_only=True, slots=True)
class Aside:
    """A run that is to be moved aside, and why, in one line."""

    directory: RunDirectory
    why: str


def settle(recipe: Recipe, *, fresh: bool = False, last_too: bool = True, say: Callable[[str], None]) -> None:
    """Move aside what is to begin anew, and say so. Raises BadInput as `look` does."""
    for found in look(recipe, fresh=fresh, last_too=last_too):
        target = found.directory.set_aside()
        say(f"{found.directory.name} begins anew: {found.why}; what was there is kept as {target.name}")


def look(recipe: Recipe, *, fresh: bool = False, last_too: bool = True) -> list[Aside]:
    """What must be moved aside before the recipe is run; changes nothing. `fresh`: each stage of which something
    differs begins anew, and (`last_too`) the last one whatever became of it.

    Raises:
        BadInput: with every run that is there and is another one.
    """
    problems, aside, anew = Problems(), [], set[str]()
    for config in recipe.stages:
        directory, asked = _directory(config), fresh and last_too and config is recipe.stages[-1]
        if not directory.resolved.is_file():
            anew.add(str(config.model_directory))
            continue
        try:
            differs = list(_differs(config, directory, anew))
        except RlhfError as error:  # its resolved.json was damaged
            if not fresh:
                problems.extend(error.problems)
                continue
            differs = [Differs(key="", words="its resolved.json cannot be read", is_setting=True)]
        if differs or not directory.is_complete or asked:
            anew.add(str(config.model_directory))
        if asked or (fresh and differs):
            aside.append(Aside(directory=directory, why=_few(differs) if differs else "--fresh asks for it"))
        elif differs and not directory.is_complete and not _has(directory, {Fact.committed}):
            aside.append(Aside(directory=directory, why=f"{_few(differs)}, and no step of it was finished"))
        elif differs:
            problems.append(_refusal(directory, differs))
    problems.raise_if_any()
    return aside


def refuse_other_inputs(directory: RunDirectory, config: RunConfig) -> None:
    """Before a run goes on: what it has learned or sampled so far came from something else. Rows that changed are told
    with their numbers when a checkpoint is taken up; what scores and what is held out may be mended.

    Raises:
        ResumeError: naming everything that has changed.
    """
    then = directory.read_inputs()
    if then is None or not _has(directory, BEGUN):
        return
    told_later = ("data.prompts", "data.dataset") if _has(directory, {Fact.checkpoint}) else ()
    found = changes(then, inputs_of(config), config)
    wrong = [words for key, words in found.items() if key not in told_later and not _may_be_mended(key)]
    if wrong:
        why = "what the run has done so far came of what was there before"
        fix = f"restore it, or begin anew: rlhf run RECIPE --fresh, which keeps what is there as {directory.name}.old-N"
        raise ResumeError(Problem(what="; ".join(wrong), where=str(directory.path), why=why, fix=fix))


def write_inputs(directory: RunDirectory, config: RunConfig) -> list[str]:
    """Write down what an attempt reads; returns a line for everything that changed since the attempt before."""
    then, now = directory.read_inputs(), inputs_of(config)
    disk.write_atomic(directory.inputs, json.dumps(now, indent=2) + "\n")
    found = {} if then is None or not _has(directory, BEGUN) else changes(then, now, config)
    return [f"{words} since the last attempt: from here on it is the new one" for words in found.values()]


# ------------------------------------------------------------------------------------------------ what differs


def _differs(config: RunConfig, directory: RunDirectory, anew: set[str]) -> Iterator[Differs]:
    """Settings, then inputs, then models that an earlier stage is about to make anew."""
    for key, before, after in directory.differs_from(config):
        yield Differs(key=key, words=f"{key} was {show(before)} and is {show(after)}", is_setting=True)
    made = {key: path for key, path in named(config).items() if path in anew}
    then = directory.read_inputs()
    found = {} if then is None else changes(then, inputs_of(config), config)
    if directory.is_complete or _has(directory, BEGUN):
        found = {k: words for k, words in found.items() if k not in made}
        found |= {key: f"{key} ({path}) is about to be trained anew" for key, path in made.items()}
        yield from (Differs(key=key, words=words, is_setting=False) for key, words in found.items())


def _refusal(directory: RunDirectory, differs: Sequence[Differs]) -> Problem:
    settings = any(d.is_setting for d in differs)
    goes_on = not directory.is_complete and (settings or all(_may_be_mended(d.key) for d in differs))
    way = f"go on with what is there: {directory.resume_command}; or " if goes_on else ""
    return Problem(
        what="belongs to a run with another config" if settings else "came of something else than is there now",
        where=str(directory.path),
        why=_few(differs),
        fix=f"{way}choose a new name: name=NAME; or begin anew: --fresh (what is there is kept as "
        f"{directory.name}.old-N)",
    )


def _directory(config: RunConfig) -> RunDirectory:
    return RunDirectory(local(config.output_dir).absolute() / config.name)


def _has(directory: RunDirectory, facts: set[Fact]) -> bool:
    try:
        return any(record.fact in facts for record in read_ledger(directory.ledger)[0])
    except (RlhfError, OSError):
        return True  # a ledger that cannot be read is somebody's work


def _may_be_mended(key: str) -> bool:
    return key.startswith(MAY_BE_MENDED)


def _few(differs: Sequence[Differs]) -> str:
    more = f"; and {len(differs) - SHOWN} more" if len(differs) > SHOWN else ""
    return "; ".join(d.words for d in differs[:SHOWN]) + more
