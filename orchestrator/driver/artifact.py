"""What a run writes in the end: the model of its learners, or the data set of its samples."""

from __future__ import annotations

from functools import partial
from itertools import takewhile
from pathlib import Path

from orchestrator.driver.assembly import Material
from orchestrator.driver.context import AttemptContext
from orchestrator.driver.round_models import Export
from orchestrator.generation.data_set import DataSet
from orchestrator.pipeline.exports import write_model
from orchestrator.pipeline.learning import Learners
from orchestrator.pipeline.writing import Writers

HELD_OUT = ("eval_prompts", "eval_harmful", "eval_benign")


def exporter(attempt: AttemptContext, material: Material, learners: Learners | Writers) -> Export:
    """Return the function that writes what the run writes in the end to a path.

    Raises:
        BadInput: the prompts of a data set do not fit one file.
    """
    if isinstance(learners, Learners):
        return partial(write_model, learners.policy, uploads=attempt.uploads, fence=attempt.ledger.fence)
    held_out = (prompt for key in HELD_OUT if key in material.sources for prompt in material.sources[key].rows)
    data_set = DataSet(attempt.config, material.prompts, held_out)
    parts = [attempt.directory.part(step + 1) for step in range(material.max_steps)]

    def write(target: Path) -> None:
        attempt.monitor.phase("writer", "filtering")
        written = list(takewhile(Path.is_file, parts))  # a budget may have ended the run before its last step
        data_set.write(written, target, fence=attempt.ledger.fence)
        attempt.monitor.phase("writer", "")

    return write
