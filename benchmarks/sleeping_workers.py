"""Workers that sleep instead of computing, with the durations of a real cluster: for the scheduler alone.

    prompts ──► SleepingRollout ──► SleepingReward, SleepingReference ──► SleepingLearner

Each sleeps for so many seconds per prompt (the learner per update) and reports progress after each. Their results are
tiny but well-formed, so the pipeline, the rollout store and the ledger are the real ones.
"""

from __future__ import annotations

import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from orchestrator.cluster.base import GangPlan, Resources
from workers import progress
from workers.files.rollout_files import write_experience, write_scores
from workers.ragged import Ragged
from workers.spans import UpdateRange
from workers.stats import StepStats
from workers.types import Experience, Finish, Prompt, Sampling, Scores, TokenShard, merge

IMPORTS = {"PYTHONPATH": os.pathsep.join([str(Path(__file__).parents[1]), os.environ.get("PYTHONPATH", "")])}
"""Environment variables with which an actor can import this file."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Durations:
    """Seconds of the phases of a round, each on its own worker."""

    generate: float  # per prompt
    score: float  # per prompt
    reference: float  # per prompt
    update: float  # per optimiser update
    num_updates: int  # of a round


class SleepingRollout:
    """Engine that sleeps. In the chunk `stalls_at` of its first round it hangs, once."""

    def __init__(self, durations: Durations, stalls_at: int | None = None) -> None:
        self._durations, self._stalls_at, self.version = durations, stalls_at, 0

    def generate(
        self,
        prompts: Sequence[Prompt],
        sampling: Sampling,
        versions: tuple[int, int] | None = None,
        file_prefix: str | None = None,
        chunk: int = 0,
    ) -> Experience:
        """Return two completions of one token for each prompt."""
        if chunk == self._stalls_at:
            time.sleep(3600)
        started = time.perf_counter()
        _work(len(prompts), self._durations.generate)
        count = sampling.num_generations * len(prompts)
        experience = Experience(
            prompts=tuple(prompts),
            prompt_tokens=Ragged.of([[1]] * len(prompts)),
            completions=Ragged.of([[2]] * count),
            group_offsets=np.arange(len(prompts) + 1, dtype=np.int64) * sampling.num_generations,
            logprobs=np.zeros(count, np.float32),
            versions=np.full(count, self.version, np.int32),
            finish=np.full(count, Finish.stop, np.int32),
            seconds=time.perf_counter() - started,
            chunk=chunk,
        )
        if file_prefix is not None:
            write_experience(f"{file_prefix}rollout-0", experience)
        return experience


class SleepingReward:
    """Scorer that sleeps. Rewards alternate between 0 and 1."""

    def __init__(self, durations: Durations) -> None:
        self._durations = durations

    def score(self, parts: Sequence[Experience], file_prefix: str | None = None) -> Scores:
        started, experience = time.perf_counter(), merge(parts)
        _work(len(experience.prompts), self._durations.score)
        rewards = np.arange(len(experience.completions), dtype=np.float32) % 2
        seconds = time.perf_counter() - started
        scores = Scores(rewards=rewards, by_scorer={"parity": rewards}, seconds=seconds, chunk=experience.chunk)
        if file_prefix is not None:
            write_scores(f"{file_prefix}reward-0", scores)
        return scores


class SleepingReference:
    """Reference that sleeps. It is the policy itself."""

    def __init__(self, durations: Durations) -> None:
        self._durations = durations

    def logprobs(self, parts: Sequence[Experience], temperature: float = 1.0, version: int | None = None) -> TokenShard:
        experience = merge(parts)
        _work(len(experience.prompts), self._durations.reference)
        count = len(experience.completions)
        values = np.zeros(len(experience.completions.values), np.float32)
        return TokenShard(completions=np.arange(count), values=values, chunk=experience.chunk)


class SleepingLearner:
    """Learner that sleeps for each update."""

    def __init__(self, durations: Durations) -> None:
        self._durations = durations

    def step(self, step: int, experience: Sequence[Experience], *inputs: Any) -> StepStats:
        del step, experience
        return self._updates(inputs[-1])

    def more(self, step: int, span: UpdateRange) -> StepStats:
        del step
        return self._updates(span)

    def _updates(self, span: UpdateRange) -> StepStats:
        total = self._durations.num_updates
        last = total if span.count is None else min(total, span.first + span.count)
        _work(last - span.first, self._durations.update)
        return StepStats(
            sums={"loss": (last - span.first) / total},
            maxima={},
            facts={"num_updates": float(last - span.first)},
            left=total - last,
        )


def plans(durations: Durations, *, restarts: int = 0, stalls_at: int | None = None) -> list[GangPlan]:
    """Return a gang of one for each role."""
    rollout = {"durations": durations, "stalls_at": stalls_at}
    return [
        _plan("rollout", SleepingRollout, rollout, restarts),
        _plan("reward", SleepingReward, {"durations": durations}, restarts),
        _plan("reference", SleepingReference, {"durations": durations}, restarts),
        _plan("policy", SleepingLearner, {"durations": durations}, 0),
    ]


def _plan(role: str, worker: type[Any], arguments: Mapping[str, Any], restarts: int) -> GangPlan:
    resources = Resources(cpus=0.1, environment=IMPORTS)
    return GangPlan(role=role, start=worker, arguments=[arguments], resources=resources, restarts=restarts)


def _work(pieces: int, seconds: float) -> None:
    for _ in range(pieces):
        time.sleep(seconds)
        progress.report()
