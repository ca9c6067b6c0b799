"""Where experience comes from: the policy's own samples of prompts, or a dataset. Handles only, no tokens.

consumes   prompts or rows, chosen by (seed, step) alone
produces   handles to Experience, and to its Scores where completions were sampled
waits for  nothing: what is to be waited for, the learner waits for (with dynamic sampling: a step's own rewards)
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

FURTHER = 1  # tells the stream of further prompts from a step's own


@dataclass(frozen=True, kw_only=True, slots=True)
class PendingBatch:
    """The experience of one step, on its way. `scores` is None when nothing was sampled, or nothing scores it."""

    experience: Sequence[Handle[Experience]]
    scores: Sequence[Handle[Scores]] | None
    resamples: int | None = None  # rounds of further prompts; None: the step takes what its first prompts gave
    rows: tuple[int, ...] = ()  # the prompts that were asked, where the step chose some of them
    kept: tuple[str, ...] | None = None  # how the names of its files begin; None: it is not kept, or was before
    kept_scores: tuple[str, ...] | None = None  # likewise

    def wait(self) -> None:
        """Return when all of it is there."""
        for handle in self.scores if self.scores is not None else self.experience:
            handle.wait()


@dataclass(frozen=True, kw_only=True, slots=True)
class StoredRollouts:
    """What an earlier attempt has kept of a step. Files are (path, SHA-256)."""

    experience: Sequence[tuple[str, str]]
    scores: Sequence[tuple[str, str]] | None  # None: it was not scored
    resamples: int | None
    rows: tuple[int, ...] | None  # None: the step's own prompts


class RolloutStore(Protocol):
    """Remembers what was sampled and scored, so that it is done once."""

    def place(self, step: int, part: int) -> str:
        """How the names of files begin that keep the `part`-th sampling of a step."""
        ...

    def known(self, step: int) -> StoredRollouts | None:
        """What is there already; None: nothing."""
        ...

    def begun(self, step: int, pending: PendingBatch) -> None:
        """The experience of a step is on its way."""
        ...


Begun: TypeAlias = Callable[[int, Sequence[Handle[Experience]]], None]
"""Told of each step whose experience is on its way, so that the reference can score it while the learner is busy."""


class Source(Protocol):
    """Gives each step its experience, in order."""

    def take(self, step: int) -> PendingBatch: ...


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
        store: RolloutStore | None = None,
        max_resamples: int = 0,
    ) -> None:
        """`store` None: nothing is kept. `max_resamples`: how often a step may sample further prompts for groups
        without signal; 0: never."""
        assert not (max_resamples and max_staleness), "to choose further prompts, a step's rewards must be there"
        self._begun, self._store, self._max_resamples = begun, store, max_resamples
        self._rollout, self._reward, self._prompts, self._sampling = rollout, reward, prompts, sampling
        self._prompts_per_step, self._max_staleness, self._max_steps = prompts_per_step, max_staleness, max_steps
        self._ahead: dict[int, PendingBatch] = {}

    def take(self, step: int) -> PendingBatch:
        for future in range(step, min(step + self._max_staleness + 1, self._max_steps)):
            if future not in self._ahead:
                self._ahead[future] = self._begin(future)
                self._begun(future, self._ahead[future].experience)
        return self._ahead.pop(step)

    def _begin(self, step: int) -> PendingBatch:
        known = self._store.known(step) if self._store else None
        if known is not None:
            pending = self._recall(step, known)
        else:
            rows = [int(row) for row in self.rows(step)]
            pending = self._sample(step, rows)
            if self._max_resamples:
                pending = self._with_signal(step, rows, pending)
        if self._store:
            self._store.begun(step, pending)
        return pending

    def _recall(self, step: int, known: StoredRollouts) -> PendingBatch:
        """What was sampled before; it is scored again only when no score of it was recorded."""
        rows = known.rows if known.rows is not None else [int(row) for row in self.rows(step)]
        experience = [self._rollout.one(Rollout.recall, known.experience, [self._prompts[i] for i in rows])]
        if known.scores is not None and self._reward is not None:
            scored = PendingBatch(experience=experience, scores=[self._reward.one(Reward.recall, known.scores)])
        else:
            scored = score(experience, self._reward, self._place(step, 0))
        return replace(scored, resamples=known.resamples, rows=known.rows or ())

    def _with_signal(self, step: int, taken: list[int], pending: PendingBatch) -> PendingBatch:
        """More prompts for groups whose rewards are all equal (DAPO, arXiv 2503.14476), until `prompts_per_step` groups
        have signal. The driver reads rewards, never tokens."""
        experience, scores = list(pending.experience), list(pending.scores or ())
        kept, kept_scores = list(pending.kept or ()), list(pending.kept_scores or ())
        missing, resamples = self._prompts_per_step - self._num_with_signal(scores), 0
        while missing > 0 and resamples < self._max_resamples:
            rows = self.further_rows(step, taken, missing)
            if not rows:
                break
            resamples += 1
            more, taken = self._sample(step, rows, resamples), taken + rows
            experience += more.experience
            scores += more.scores or ()
            kept += more.kept or ()
            kept_scores += more.kept_scores or ()
            missing -= self._num_with_signal(more.scores or ())
        return PendingBatch(
            experience=experience,
            scores=scores,
            resamples=resamples,
            rows=tuple(taken),
            kept=tuple(kept) if self._store else None,
            kept_scores=tuple(kept_scores) if self._store else None,
        )

    def _num_with_signal(self, scores: Sequence[Handle[Scores]]) -> int:
        rewards = merge_scores(wait(scores)).rewards.reshape(-1, self._sampling.num_generations)
        return int((rewards.max(1) > rewards.min(1)).sum()) if len(rewards) else 0

    def _sample(self, step: int, rows: Sequence[int], part: int = 0) -> PendingBatch:
        prompts, versions = [self._prompts[i] for i in rows], (max(0, step - self._max_staleness), step)
        return sample(prompts, self._sampling, self._rollout, self._reward, versions, self._place(step, part))

    def _place(self, step: int, part: int) -> str | None:
        return self._store.place(step, part) if self._store else None

    def further_rows(self, step: int, taken: Sequence[int], count: int) -> list[int]:
        """Which prompts a step samples next: the first of an order of its own that it has not `taken`. A function of
        (seed, step) and the step's rewards so far, so that a resumed run chooses the same."""
        seed = int(np.random.SeedSequence([self._sampling.seed, FURTHER]).generate_state(1)[0])
        order = batch_indices(len(self._prompts), len(self._prompts), step, seed)
        return [int(row) for row in order[~np.isin(order, taken)][:count]]

    def rows(self, step: int) -> NDArray[np.int64]:
        """Which prompts a step samples."""
        size = min(self._prompts_per_step, len(self._prompts))  # none twice, where too few are left
        return batch_indices(len(self._prompts), size, step, self._sampling.seed)


def sample(
    prompts: Sequence[Prompt],
    sampling: Sampling,
    rollout: Gang[Rollout],
    reward: Gang[Reward] | None,
    versions: tuple[int, int] | None = None,
    keep: str | None = None,
) -> PendingBatch:
    """Completions for `prompts`, shared out over the engines in order, and their scores.

    `versions`: the oldest and newest of the policy that may be sampled, whichever engine does it; None: any. `keep`:
    each worker writes what it made to a file whose name begins like this; None: nobody does.
    """
    size = len(rollout)
    shards = [prompts[len(prompts) * i // size : len(prompts) * (i + 1) // size] for i in range(size)]
    experience = rollout.each(Rollout.generate, [(shard, sampling, versions, keep) for shard in shards])
    kept = None if keep is None else tuple(f"{keep}rollout-{i}" for i in range(size))
    return replace(score(experience, reward, keep), kept=kept)


def score(experience: Sequence[Handle[Experience]], reward: Gang[Reward] | None, keep: str | None) -> PendingBatch:
    """The scores of `experience`, where there is a gang that gives any."""
    if reward is None:
        return PendingBatch(experience=experience, scores=None, kept_scores=None if keep is None else ())
    kept = None if keep is None else tuple(f"{keep}reward-{i}" for i in range(len(reward)))
    return PendingBatch(experience=experience, scores=reward.all(Reward.score, experience, keep), kept_scores=kept)


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
        self._ahead: dict[int, PendingBatch] = {}

    def take(self, step: int) -> PendingBatch:
        for future in range(step, min(step + 2, self._max_steps)):
            if future not in self._ahead:
                handle = self._encoder.one(Encoder.encode, [self._examples[i] for i in self.rows(future)])
                self._ahead[future] = PendingBatch(experience=[handle], scores=None)
                self._begun(future, [handle])
        return self._ahead.pop(step)

    def rows(self, step: int) -> NDArray[np.int64]:
        """Which examples a step learns from."""
        size = min(self._batch_size, len(self._examples))
        return batch_indices(len(self._examples), size, step, self._seed)
