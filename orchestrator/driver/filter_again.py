"""Another data set from the samples that a run has: filtered anew, nothing is sampled or scored."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager
from itertools import count, takewhile
from pathlib import Path
from typing import Any, TypeAlias

from orchestrator import disk
from orchestrator.data.sources import local
from orchestrator.driver.assembly import Material
from orchestrator.driver.generated import HELD_OUT, data_set_of
from orchestrator.driver.resume_overrides import apply_overrides
from orchestrator.errors import BadInput, Problem
from orchestrator.generation.data_set import ROWS, read_summary
from orchestrator.rundir.directory import RunDirectory
from orchestrator.rundir.inputs import CONSTITUTION, changes, inputs_of
from workers.config import GenerateConfig

MAY_CHANGE = (
    *(f"algorithm.{key}" for key in GenerateConfig.OF_FILTERING),
    *(f"data.{key}" for key in HELD_OUT),
)
SAMPLED_FROM = ("data.prompts", CONSTITUTION)
"""Prefixes of the keys of inputs that the rows repeat."""
SAMPLED_WITH_IT = "the completions of the run were sampled and scored with it"

Tracked: TypeAlias = Callable[[Sequence[Path]], AbstractContextManager[Iterable[Path]]]


def filter_again(run: Path, overrides: Sequence[str], target: Path, tracked: Tracked) -> dict[str, Any]:
    """Write a data set from the completions that a run has sampled so far, and return its summary.

    The run itself does not change, and may still be sampling.

    Args:
        overrides: settings of what is kept, and of the form of a row.
        target: directory that is created.
        tracked: shows the progress over the files that it is given.

    Raises:
        BadInput: an override is invalid, the prompts have changed, no row is left, or the target exists.
        ResumeError: `run` is no run directory, or an override changes how the completions were sampled.
    """
    directory, target = RunDirectory.open(run), local(target).absolute()
    config = apply_overrides(directory, overrides, may_change=MAY_CHANGE, why=SAMPLED_WITH_IT)
    parts = list(takewhile(Path.is_file, (directory.part(step) for step in count(1))))
    if config.algorithm.needs.trains or not parts:
        fix = "give the directory of a run of type generate that has completed a step"
        raise BadInput(Problem(what="no samples to filter", where=str(run), why="it has no parts/", fix=fix))
    if target.exists():
        fix = "remove it, or choose another directory with --to"
        raise BadInput(Problem(what="exists already", where=str(target), why="nothing is replaced", fix=fix))
    changed = changes(directory.read_inputs() or {}, inputs_of(config), config)
    if other := [words for key, words in changed.items() if key.startswith(SAMPLED_FROM)]:
        fix, why = "restore it: the rows are made of it", "the samples are of the previous contents"
        raise BadInput(Problem(what="; ".join(other), where=str(directory.path), why=why, fix=fix))
    data_set = data_set_of(config, Material.read(config))
    assert data_set is not None
    with disk.explained(target, resume=""), tracked(parts) as files:
        data_set.write(files, target / ROWS)
    return read_summary(target) or {}
