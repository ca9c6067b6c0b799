"""Sources of experience: completions that the policy samples, or rows of a dataset. Handles only, no tokens.

consumes   prompts or rows, chosen by (seed, step) alone
produces   handles to Experience, and to Scores if completions were sampled
waits for  nothing, the learner waits (dynamic sampling: for the rewards of the step)
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Protocol, TypeAlias

import numpy as np
from numpy.typing import NDArray

from orchestrator.cluster.base import Gang, Handle, wait
from orchestrator.data import batch_indices
from workers.encoder import Encoder
from workers.reward import Reward
from workers.rollout import Rollout
from workers.types import Example, Experience, Prompt, Sampling, Scores, merge_scores

RESAMPLING = 1  # key of the random stream of further prompts, apart from the stream of a step's own prompts


@dataclass(frozen=True, kw_only=True, slots=True)
class PendingBatch:
    """Handles to the experience of one step. `scores` is None if nothing was sampled or nothing scores it."""

    experience: Sequence[Handle[Experience]]
    scores: Sequence[Handle[Scores]] | None
    resamples: int | None = None  # rounds of further prompts; None: without dynamic sampling
    rows: tuple[int, ...] = ()  # all prompts sampled, if the step chose further ones
    file_stems: tuple[str, ...] | None = None  # of the experience's files; None: not stored, or stored before
    score_file_stems: tuple[str, ...] | None = None  # of the scores' files; None: not stored, or stored before

    def wait(self) -> None:
        """Wait for all results."""
        for handle in self.scores if self.scores is not None else self.experience:
            handle.wait()


@dataclass(frozen=True, kw_only=True, slots=True)
class StoredRollouts:
    """Rollouts of a step that an earlier attempt stored. Files are (path, SHA-256)."""

    experience: Sequence[tuple[str, str]]
    scores: Sequence[tuple[str, str]] | None  # None: not scored
    resamples: int | None
    rows: tuple[int, ...] | None  # None: the step's own prompts


class RolloutStore(Protocol):
    """Store of rollouts, so that no step is sampled or scored twice."""

    def file_prefix(self, step: int, part: int) -> str:
        """Return the prefix of the files that store the `part`-th sampling of a step."""
        ...

    def find(self, step: int) -> StoredRollouts | None:
        """Return what is stored of a step; None if nothing is."""
        ...

    def register(self, step: int, pending: PendingBatch) -> None:
        """Note that the experience of a step has been requested."""
        ...


OnBegin: TypeAlias = Callable[[int, Sequence[Handle[Experience]]], None]
"""Callback for each step whose experience has been requested. The reference scores it while the learner is busy."""


class Source(Protocol):
    """Source of each step's experience, in order."""

    def take(self, step: int) -> PendingBatch: ...


class RolloutSource:
    """Completions sampled by the rollout gang and scored by the reward gang, if there is one.

    Generation runs up to `max_staleness` steps ahead of the step that is taken; 0 is a synchronous run. An engine
    executes its calls in order, so weights published after the call for step n + k are loaded after step n + k is
    sampled: no completion is older than k versions.
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
        on_begin: OnBegin,
        store: RolloutStore | None = None,
        max_resamples: int = 0,
    ) -> None:
        """Create the source.

        Args:
            on_begin: called for each step whose experience has been requested.
            store: store of rollouts; None: nothing is stored.
            max_resamples: how often a step may sample further prompts for groups without signal.
        """
        assert not (max_resamples and max_staleness), "dynamic sampling needs the rewards of the step"
        self._on_begin, self._store, self._max_resamples = on_begin, store, max_resamples
        self._rollout, self._reward, self._prompts, self._sampling = rollout, reward, prompts, sampling
        self._prompts_per_step, self._max_staleness, self._max_steps = prompts_per_step, max_staleness, max_steps
        self._ahead: dict[int, PendingBatch] = {}

    def take(self, step: int) -> PendingBatch:
        for future in range(step, min(step + self._max_staleness + 1, self._max_steps)):
            if future not in self._ahead:
                self._ahead[future] = self._begin(future)
                self._on_begin(future, self._ahead[future].experience)
        return self._ahead.pop(step)

    def _begin(self, step: int) -> PendingBatch:
        stored = self._store.find(step) if self._store else None
        if stored is not None:
            pending = self._recall(step, stored)
        else:
            rows = [int(row) for row in self.rows(step)]
            pending = self._sample(step, rows)
            if self._max_resamples:
                pending = self._resample(step, rows, pending)
        if self._store:
            self._store.register(step, pending)
        return pending

    def _recall(self, step: int, stored: StoredRollouts) -> PendingBatch:
        """Read stored rollouts. Score them again only if no scores were stored."""
        rows = stored.rows if stored.rows is not None else [int(row) for row in self.rows(step)]
        experience = [self._rollout.one(Rollout.recall, stored.experience, [self._prompts[i] for i in rows])]
        if stored.scores is not None and self._reward is not None:
            scored = PendingBatch(experience=experience, scores=[self._reward.one(Reward.recall, stored.scores)])
        else:
            scored = score(experience, self._reward, self._file_prefix(step, 0))
        return replace(scored, resamples=stored.resamples, rows=stored.rows or ())

    def _resample(self, step: int, taken: list[int], pending: PendingBatch) -> PendingBatch:
        """Sample further prompts until `prompts_per_step` groups have rewards that differ (DAPO, arXiv 2503.14476).

        The driver reads rewards here, but no tokens.
        """
        experience, scores = list(pending.experience), list(pending.scores or ())
        stems, score_stems = list(pending.file_stems or ()), list(pending.score_file_stems or ())
        missing, resamples = self._prompts_per_step - self._num_with_signal(scores), 0
        while missing > 0 and resamples < self._max_resamples:
            rows = self.further_rows(step, taken, missing)
            if not rows:
                break
            resamples += 1
            more, taken = self._sample(step, rows, resamples), taken + rows
            experience += more.experience
            scores += more.scores or ()
            stems += more.file_stems or ()
            score_stems += more.score_file_stems or ()
            missing -= self._num_with_signal(more.scores or ())
        return PendingBatch(
            experience=experience,
            scores=scores,
            resamples=resamples,
            rows=tuple(taken),
            file_stems=tuple(stems) if self._store else None,
            score_file_stems=tuple(score_stems) if self._store else None,
        )

    def _num_with_signal(self, scores: Sequence[Handle[Scores]]) -> int:
        rewards = merge_scores(wait(scores)).rewards.reshape(-1, self._sampling.num_generations)
        return int((rewards.max(1) > rewards.min(1)).sum()) if len(rewards) else 0

    def _sample(self, step: int, rows: Sequence[int], part: int = 0) -> PendingBatch:
        prompts, versions = [self._prompts[i] for i in rows], (max(0, step - self._max_staleness), step)
        return sample(prompts, self._sampling, self._rollout, self._reward, versions, self._file_prefix(step, part))

    def _file_prefix(self, step: int, part: int) -> str | None:
        return self._store.file_prefix(step, part) if self._store else None

    def further_rows(self, step: int, taken: Sequence[int], count: int) -> list[int]:
        """Return the next prompts to sample: the first that are not `taken`, in a random order of the step.

        They depend only on (seed, step) and the step's rewards so far, so a resumed run chooses the same ones.
        """
        seed = int(np.random.SeedSequence([self._sampling.seed, RESAMPLING]).generate_state(1)[0])
        order = batch_indices(len(self._prompts), len(self._prompts), step, seed)
        return [int(row) for row in order[~np.isin(order, taken)][:count]]

    def rows(self, step: int) -> NDArray[np.int64]:
        """Return the indices of the prompts that a step samples."""
        size = min(self._prompts_per_step, len(self._prompts))  # no prompt twice
        return batch_indices(len(self._prompts), size, step, self._sampling.seed)


def sample(
    prompts: Sequence[Prompt],
    sampling: Sampling,
    rollout: Gang[Rollout],
    reward: Gang[Reward] | None,
    versions: tuple[int, int] | None = None,
    file_prefix: str | None = None,
) -> PendingBatch:
    """Sample completions for `prompts`, split over the engines in order, and score them.

    Args:
        versions: the oldest and the newest version of the policy that an engine may sample from; None: any.
        file_prefix: prefix of the files that the workers write their results to; None: they write none.
    """
    size = len(rollout)
    shards = [prompts[len(prompts) * i // size : len(prompts) * (i + 1) // size] for i in range(size)]
    experience = rollout.each(Rollout.generate, [(shard, sampling, versions, file_prefix) for shard in shards])
    stems = None if file_prefix is None else tuple(f"{file_prefix}rollout-{i}" for i in range(size))
    return replace(score(experience, reward, file_prefix), file_stems=stems)


def score(
    experience: Sequence[Handle[Experience]], reward: Gang[Reward] | None, file_prefix: str | None
) -> PendingBatch:
    """Score `experience`, if there is a reward gang."""
    if reward is None:
        return PendingBatch(experience=experience, scores=None, score_file_stems=None if file_prefix is None else ())
    stems = None if file_prefix is None else tuple(f"{file_prefix}reward-{i}" for i in range(len(reward)))
    scores = reward.all(Reward.score, experience, file_prefix)
    return PendingBatch(experience=experience, scores=scores, score_file_stems=stems)


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
        on_begin: OnBegin,
    ) -> None:
        self._on_begin = on_begin
        self._encoder, self._examples, self._batch_size = encoder, examples, batch_size
        self._seed, self._max_steps = seed, max_steps
        self._ahead: dict[int, PendingBatch] = {}

    def take(self, step: int) -> PendingBatch:
        for future in range(step, min(step + 2, self._max_steps)):
            if future not in self._ahead:
                handle = self._encoder.one(Encoder.encode, [self._examples[i] for i in self.rows(future)])
                self._ahead[future] = PendingBatch(experience=[handle], scores=None)
                self._on_begin(future, [handle])
        return self._ahead.pop(step)

    def rows(self, step: int) -> NDArray[np.int64]:
        """Return the indices of the examples that a step trains on."""
        size = min(self._batch_size, len(self._examples))
        return batch_indices(len(self._examples), size, step, self._seed)
