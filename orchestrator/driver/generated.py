"""Data set of a run that trains nothing: prepared before anything is started, written after the last step."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from orchestrator.config import RunConfig
from orchestrator.driver.assembly import Material
from orchestrator.driver.context import AttemptContext
from orchestrator.errors import FilesLost, Problem
from orchestrator.generation.data_set import ROWS, DataSet
from orchestrator.monitor import Monitor

HELD_OUT = ("eval_prompts", "eval_harmful", "eval_benign")


def data_set_of(config: RunConfig, material: Material) -> DataSet | None:
    """Return the data set that a run writes; None if it trains a model.

    Raises:
        BadInput: the prompts do not fit into the columns of one file.
    """
    if config.algorithm.needs.trains:
        return None
    held_out = (prompt for key in HELD_OUT if key in material.sources for prompt in material.sources[key].rows)
    return DataSet(config, material.prompts, held_out)


def write_data_set(attempt: AttemptContext, data_set: DataSet, *, num_steps: int) -> None:
    """Write the data set of the steps that are done. A budget may have ended the run before the last of them.

    Raises:
        BadInput: no row is left.
        FilesLost: the samples of a step are gone.
    """
    parts = [attempt.directory.part(step + 1) for step in range(num_steps)]
    if gone := [part.name for part in parts if not part.is_file()]:
        raise FilesLost(
            Problem(
                what=f"the samples of {len(gone)} of {num_steps} steps are gone, the first of them {gone[0]}",
                where=str(parts[0].parent),
                why="the data set would lack their rows",
                fix="restore them, or start over: --fresh",
            )
        )
    data_set.write(_announced(parts, attempt.monitor), attempt.directory.data / ROWS, fence=attempt.ledger.fence)
    attempt.monitor.phase("writer", "")


def _announced(parts: Sequence[Path], monitor: Monitor) -> Iterator[Path]:
    """Yield the parts, and report how many of them are filtered."""
    for done, part in enumerate(parts):
        monitor.advance("writer", step=len(parts), done=done, total=len(parts), unit="steps filtered")
        yield part
