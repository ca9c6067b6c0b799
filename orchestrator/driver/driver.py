"""Driver: from a recipe to a finished run, stage by stage.

recipe ──► stage ──► directory ──► attempt ──► model, exit.json ──► report
             │           ▲            │
             │           └── again, if an alarm rolls the run back
             └── complete, same config and inputs: reused
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from orchestrator.config import Recipe, RunConfig
from orchestrator.driver.attempt import Attempt
from orchestrator.driver.checkpoint import newest
from orchestrator.driver.resume_overrides import apply_overrides
from orchestrator.driver.summary import write_report
from orchestrator.driver.take_over import store_report
from orchestrator.errors import Alarmed
from orchestrator.pipeline.roles import preloaded
from orchestrator.rundir.directory import RunDirectory
from orchestrator.rundir.existing import move_aside, refuse_other_inputs
from orchestrator.rundir.fetch import bring_in, fetch_inputs
from orchestrator.rundir.ledger import checkpointed, read_ledger
from orchestrator.rundir.manifest import list_checkpoints
from orchestrator.rundir.stored import open_stored
from orchestrator.signals import StopRequest


def run_recipe(recipe: Recipe, *, fresh: bool = False) -> int:
    """Run every stage of a recipe that is not complete yet. Return 0.

    Args:
        fresh: start over the last stage, and each earlier one that differs from its existing run.

    Raises:
        RlhfError: a stage failed, was interrupted, or was ended by an alarm. Its exit.json is written.
    """
    for config in recipe.stages:
        bring_in(config)
    move_aside(recipe, fresh=fresh, say=print)
    with StopRequest() as stop, ExitStack() as stack:
        for index, config in enumerate(recipe.stages):
            directory = RunDirectory.create(config, recipe.text)
            if directory.is_complete:
                unsure = "" if directory.read_inputs() is not None else "; its inputs were not recorded"
                print(f"{config.name}: complete, reused ({directory.artifact}){unsure}")
            else:
                fetch_inputs(config)  # of the stages before
                stack.enter_context(preloaded(config.cluster))
                run_attempts(config, directory, stop, stage=(index + 1, len(recipe.stages)))
    return 0


def resume_run(path: Path, overrides: Sequence[str] = ()) -> int:
    """Resume a run from its newest checkpoint, or from the beginning if it stopped before the first. Return 0.

    Raises:
        ResumeError: every checkpoint is missing or damaged, or an override would make it another run.
        RlhfError: the run failed again, was interrupted, or was ended by an alarm.
    """
    directory = RunDirectory.open(path)
    if directory.is_complete:
        print(f"{directory.name}: complete, nothing to resume ({directory.artifact})")
        return 0
    config = apply_overrides(directory, overrides)
    bring_in(config)
    refuse_other_inputs(directory, config)
    expected = checkpointed(read_ledger(directory.ledger)[0])
    stored = open_stored(config, directory)
    if list_checkpoints(directory.checkpoints) or (expected is not None and stored is None):
        newest(directory.checkpoints, expected, stored)  # raises before anything is started
    with StopRequest() as stop, preloaded(config.cluster):
        run_attempts(config, directory, stop)
    return 0


def run_attempts(config: RunConfig, directory: RunDirectory, stop: StopRequest, **options: Any) -> None:
    """Run an attempt, and another one each time an alarm rolls the run back (at most once per alarm).

    A report is written, however the attempts end. `options`: further arguments of `Attempt`.
    """
    try:
        while True:
            try:
                return Attempt(config, directory, stop, **options).run()
            except Alarmed as alarm:
                if alarm.action != "roll_back":
                    raise
    finally:
        write_report(directory)
        store_report(config, directory)
