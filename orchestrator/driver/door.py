"""Door of a run: the waits that come before anything heavy is imported, so that a driver that waits stays small.

A driver waits here while a job ahead of it has no places (`orchestrator.cluster.turn`), and while another driver runs a
stage that its recipe begins with, too: it then reuses that stage, or takes it over if the other driver has died.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

from orchestrator.cluster.turn import Changes, Turn, wait_while
from orchestrator.config.run import RunConfig
from orchestrator.data.sources import local
from orchestrator.errors import ClusterError, Problem, RlhfError
from orchestrator.rundir.directory import RunDirectory
from orchestrator.rundir.stop import requested, withdraw_earlier


def wait_at_the_door(
    stages: Sequence[RunConfig],
    say: Callable[[str], None],
    *,
    turn: Turn | None = None,
    sleep: Callable[[float], None] = time.sleep,
) -> None:
    """Return when it is the turn of this job, and no other driver runs an earlier stage of its recipe.

    Args:
        stages: those of the recipe; empty: the command runs no recipe.
        say: prints a line: what the driver waits for, once and when it changes.
        turn: turn of the job; None: that of the job that this process belongs to, if it belongs to one.

    Raises:
        Interrupted: the run was asked to stop.
        ClusterError: its turn did not come within `cluster.wait_for_room_s`.
    """
    turn = turn or Turn.of_this_job()
    directories = [_directory(config).path for config in stages]
    withdraw_earlier(directories)
    limit_s = stages[-1].cluster.wait_for_room_s if stages else None
    changes, began = Changes(say), time.monotonic()

    def on_wait(text: str) -> None:
        changes(text)
        # A request that lies in a directory which another driver holds is for that driver.
        if (stop := requested(path for path in directories if RunDirectory(path).holder() is None)) is not None:
            raise stop.error()
        if limit_s is not None and time.monotonic() - began >= limit_s:
            fix = "raise cluster.wait_for_room_s, or submit with a higher --priority"
            raise ClusterError(Problem(what=f"the run could not begin within {limit_s:g} s", why=text, fix=fix))

    wait_while(lambda: (turn.waits_for() if turn else "") or _held_stage(stages), on_wait, sleep)


def held_text(stage: str, holder: str) -> str:
    """Return the line for a person about a stage that another driver runs."""
    return f"stage {stage}: another job ({holder}) runs it; waiting"


def _directory(config: RunConfig) -> RunDirectory:
    return RunDirectory(local(config.directory).absolute())


def _held_stage(stages: Sequence[RunConfig]) -> str:
    """Return a line about the first stage that is not complete, if another driver runs it; else an empty text.

    The last stage is the run itself, which is refused if it runs already, and so is a stage with another config.
    """
    for config in stages[:-1]:
        directory = _directory(config)
        if directory.is_complete:
            continue
        holder = directory.holder()
        return held_text(config.name, holder) if holder is not None and _is_same(directory, config) else ""
    return ""


def _is_same(directory: RunDirectory, config: RunConfig) -> bool:
    try:
        return not directory.differs_from(config)
    except (RlhfError, OSError):
        return False
