"""Writing of a step's samples, in the place of training: the phase of a run that generates a data set.

consumes   handles to experience and scores
produces   parts/step-N.parquet, and metrics
waits for  the writer
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from orchestrator.cluster.base import Gang
from orchestrator.pipeline.sources import PendingBatch
from workers.files import durable
from workers.learner import Learner
from workers.stats import Metrics
from workers.types import Sampling
from workers.writer import Writer


class Writers:
    """Writer gang. Its interface is that of `Learners`, without updates."""

    def __init__(self, writer: Gang[Writer], part: Callable[[int], Path], sampling: Sampling) -> None:
        """Create the phase. `part` returns the file of a step, by the step's number from 1."""
        self._writer, self._part, self._sampling = writer, part, sampling

    def gangs(self) -> dict[str, Gang[Learner]]:
        """Return no gang: nothing that is written here has a state."""
        return {}

    def learn(
        self,
        step: int,
        pending: PendingBatch,
        *of_learners: object,
        **callbacks: object,
    ) -> Metrics | None:
        """Write the samples of a step, and return the step's metrics. What else learners are given is of no use here.

        Raises:
            OSError: the disk failed.
        """
        path, own = self._part(step + 1), self._sampling
        arguments: tuple[Any, ...] = (pending.experience, pending.scores)
        part = self._writer.one(Writer.part, *arguments, seed=own.seed, num_generations=own.num_generations).result()
        # By the driver: with object storage it uploads what it has written before the step counts.
        durable.make_directory(path.parent)
        durable.replace(path, part.content)
        return {**part.metrics, "generated/completions": float(part.rows)}
