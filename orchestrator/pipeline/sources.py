"""Where experience comes from: the policy's own samples of prompts, or a dataset. Handles only, no tokens.

consumes   prompts or rows, chosen by (seed, step) alone
produces   handles to Experience, and to its Scores where completions were sampled
waits for  nothing: what is to be waited for, the learner waits for
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol, TypeAlias

import numpy as np
from numpy.typing import NDArray

from orchestrator.cluster.base import Gang, Handle
from orchestrator.data import batch_indices
from workers.encoder import Encoder
from workers.reward import Reward
from workers.rollout import Rollout
from workers.types import Example, Experience, Prompt, Sampling, Scores


@dataclass(frozen=True, kw_only=True, slots=True)
class Arrival:
    """The experience of one step, on its way. `scores` is None when nothing was sampled, or nothing scores it."""

    experience: Sequence[Handle[Experience]]
    scores: Sequence[Handle[Scores]] | None

    def wait(self) -> None:
        """Return when all of it is there."""
        for handle in self.scores if self.scores is not None else self.experience:
            handle.wait()


Begun: TypeAlias = Callable[[int, Sequence[Handle[Experience]]], None]
"""Told of each step whose experience is on its way, so that the reference can score it while the learner is busy."""


class Source(Protocol):
    """Gives each step its experience, in order."""

    def take(self, step: int) -> Arrival: ...


class RolloutSource:
    """Completions sampled by the rollout gang, scored by the reward gang where there is one.

    Generation runs ahead of the step that is taken by up to `max_staleness` steps; 0 is a synchronous run. An engine
    works off its calls in order, so a publication that follows the call for step n + k is loaded after step n + k is
    sampled: no completion is ever older than k versions.
    """

    def __init__(
        self,
        rollout: Gang[Rollout],
        reward: Gang[Reward] | None,
        prompts: Sequence[Prompt],
        sampling: Sampling,
        *,
        prompts_per_step: int,
        max_staleness: int,
        max_steps: int,
        begun: Begun,
    ) -> None:
        self._begun = begun
        self._rollout, self._reward, self._prompts, self._sampling = rollout, reward, prompts, sampling
        self._prompts_per_step, self._max_staleness, self._max_steps = prompts_per_step, max_staleness, max_steps
        self._ahead: dict[int, Arrival] = {}

    def take(self, step: int) -> Arrival:
        for future in range(step, min(step + self._max_staleness + 1, self._max_steps)):
            if future not in self._ahead:
                self._ahead[future] = self._begin(future)
                self._begun(future, self._ahead[future].experience)
        return self._ahead.pop(step)

    def _begin(self, step: int) -> Arrival:
        return sample([self._prompts[i] for i in self.rows(step)], self._sampling, self._rollout, self._reward)

    def rows(self, step: int) -> NDArray[np.int64]:
        """Which prompts a step samples."""
        return batch_indices(len(self._prompts), self._prompts_per_step, step, self._sampling.seed)


def sample(
    prompts: Sequence[Prompt], sampling: Sampling, rollout: Gang[Rollout], reward: Gang[Reward] | None
) -> Arrival:
    """Completions for `prompts`, shared out over the engines in order, and their scores."""
    size = len(rollout)
    shards = [prompts[len(prompts) * i // size : len(prompts) * (i + 1) // size] for i in range(size)]
    experience = rollout.each(Rollout.generate, [(shard, sampling) for shard in shards])
    return Arrival(experience=experience, scores=None if reward is None else reward.all(Reward.score, experience))


class DatasetSource:
    """Rows of a dataset, tokenised by the encoder one step ahead of the learner."""

    def __init__(
        self,
        encoder: Gang[Encoder],
        examples: Sequence[Example],
        *,
        batch_size: int,
        seed: int,
        max_steps: int,
        begun: Begun,
    ) -> None:
        self._begun = begun
        self._encoder, self._examples, self._batch_size = encoder, examples, batch_size
        self._seed, self._max_steps = seed, max_steps
        self._ahead: dict[int, Arrival] = {}

    def take(self, step: int) -> Arrival:
        for future in range(step, min(step + 2, self._max_steps)):
            if future not in self._ahead:
                handle = self._encoder.one(Encoder.encode, [self._examples[i] for i in self.rows(future)])
                self._ahead[future] = Arrival(experience=[handle], scores=None)
                self._begun(future, [handle])
        return self._ahead.pop(step)

    def rows(self, step: int) -> NDArray[np.int64]:
        """Which examples a step learns from."""
        return batch_indices(len(self._examples), self._batch_size, step, self._seed)
