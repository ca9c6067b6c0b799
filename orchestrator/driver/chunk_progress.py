"""Progress of sampling and scoring within a step, from the chunks that have arrived."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

from orchestrator.monitor import Monitor
from orchestrator.pipeline.sources import Chunk

KEPT = 10  # newest steps that are counted: engines may work 8 steps ahead


class ChunkProgress:
    """Counter of the prompts of each step that are sampled and scored, reported to the monitor."""

    def __init__(self, monitor: Monitor, prompts_per_step: Callable[[int], int]) -> None:
        """Count from 0. `prompts_per_step` returns the number of prompts of a step, by its index."""
        self._monitor, self._prompts_per_step = monitor, prompts_per_step
        self._done = Counter[tuple[str, int]]()  # prompts by role and index of the step
        self._recalled = Counter[tuple[str, int]]()  # those that an earlier attempt did

    def arrived(self, role: str, index: int, chunk: Chunk) -> None:
        """Report a chunk that is sampled (`role` "rollout") or scored ("reward")."""
        if role == "reward" and chunk.scores is None:  # nothing scores it
            return
        stems = chunk.file_stems if role == "rollout" else chunk.score_file_stems
        if chunk.index == 0:  # a step that is taken again begins at 0
            self._begin(role, index)
            if role == "rollout" and chunk.scores is not None:
                self._begin("reward", index)
                self._report("reward", index)
        self._done[role, index] += chunk.prompts
        self._recalled[role, index] += chunk.prompts if stems is None else 0
        self._report(role, index)

    def _begin(self, role: str, index: int) -> None:
        for counts in (self._done, self._recalled):
            counts[role, index] = 0
            counts.pop((role, index - KEPT), None)

    def _report(self, role: str, index: int) -> None:
        done, recalled = self._done[role, index], self._recalled[role, index]
        total = self._prompts_per_step(index)
        self._monitor.advance(role, step=index + 1, done=done, total=total, unit="prompts", recalled=recalled)
