"""Sources of experience: completions that the policy samples, or rows of a dataset. Handles only, no tokens.

consumes   prompts or rows, chosen by (seed, step) alone
produces   chunks: handles to Experience, and to Scores if completions were sampled
waits for  nothing, the learner waits (back-pressure: for the chunk UNSCORED before; dynamic sampling: for rewards)

    chunk 0   generate ─► score
    chunk 1              generate ─► score            a chunk is scored while the next one is generated
    chunk 2                         generate ─► …     and requested once few are waiting to be scored
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol, TypeAlias

import numpy as np
from numpy.typing import NDArray

from orchestrator.cluster.base import Gang, Handle, wait
from orchestrator.data import batch_indices
from workers.config import RolloutConfig
from workers.encoder import Encoder
from workers.reward import Reward
from workers.rollout import Rollout
from workers.types import Example, Experience, Prompt, Sampling, Scores, merge_scores

RESAMPLING = 1  # key of the random stream of further prompts, apart from the stream of a step's own prompts
UNSCORED = 3  # chunks of a step that are requested and not scored yet, at most: one is sampled, one scored, one waits


@dataclass(frozen=True, kw_only=True, slots=True)
class Chunk:
    """Handles to a part of a step's experience that is sampled, scored and stored together.

    Example: `Chunk(index=2, prompts=256, experience=[…], scores=[…])`. `scores` is None if nothing was sampled or
    nothing scores it.
    """

    index: int  # within its step, from 0
    prompts: int  # prompts or rows
    experience: Sequence[Handle[Experience]]
    scores: Sequence[Handle[Scores]] | None
    resample: int | None = None  # round of further prompts that it belongs to, from 1; 0: none; None: no such rounds
    file_stems: tuple[str, ...] | None = None  # of the experience's files; None: not stored, or stored before
    score_file_stems: tuple[str, ...] | None = None  # of the scores' files; None: not stored, or stored before
    given: bool = False  # given pairs, mixed into a round: not sampled, and with rewards of their own

    def wait(self) -> None:
        """Wait for all results."""
        for handle in self.scores if self.scores is not None else self.experience:
            handle.wait()


@dataclass(frozen=True, kw_only=True, slots=True)
class PendingBatch:
    """Chunks of one step's experience, in order."""

    chunks: Sequence[Chunk]

    @property
    def experience(self) -> list[Handle[Experience]]:
        return [handle for chunk in self.chunks for handle in chunk.experience]

    @property
    def scores(self) -> list[Handle[Scores]] | None:
        """Handles to the scores; None if nothing was sampled or nothing scores it."""
        if any(chunk.scores is None for chunk in self.sampled):
            return None
        return [handle for chunk in self.sampled for handle in chunk.scores or ()]

    @property
    def sampled(self) -> list[Chunk]:
        """Chunks without those of given pairs."""
        return [chunk for chunk in self.chunks if not chunk.given]

    @property
    def resamples(self) -> int | None:
        """Rounds of further prompts; None: without dynamic sampling."""
        return max((chunk.resample for chunk in self.chunks if chunk.resample is not None), default=None)

    def wait(self) -> None:
        """Wait for all results."""
        for chunk in self.chunks:
            chunk.wait()


@dataclass(frozen=True, kw_only=True, slots=True)
class StoredChunk:
    """A chunk that an earlier attempt stored. Files are (path, SHA-256)."""

    experience: Sequence[tuple[str, str]]
    scores: Sequence[tuple[str, str]] | None  # None: not scored


class RolloutStore(Protocol):
    """Store of rollouts, so that no chunk is sampled or scored twice."""

    def file_prefix(self, step: int, chunk: int) -> str:
        """Return the prefix of the files that store a chunk."""
        ...

    def num_prompts(self, step: int, chunk: int) -> int | None:
        """Return the number of prompts of a chunk that was stored, also if it is damaged; None if none was."""
        ...

    def find(self, step: int, chunk: int) -> StoredChunk | None:
        """Return what is stored of a chunk; None if nothing is."""
        ...

    def register(self, step: int, chunk: Chunk) -> None:
        """Note that a chunk has been requested."""
        ...

    def wait_for(self, step: int, chunk: int) -> None:
        """Wait until a chunk is scored. Whatever else ends in the meantime is recorded at once."""
        ...


OnBegin: TypeAlias = Callable[[int, Chunk], None]
"""Callback for each chunk that has been requested ahead of its step. The reference scores it while the learner is
busy."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Draw:
    """Prompts of one step, and how their completions are sampled."""

    rows: Sequence[int]  # indices of the prompts
    sampling: Sampling
    prompts_per_chunk: int  # prompts that are sampled together, at most


class Source(Protocol):
    """Source of each step's experience, in order."""

    def stream(self, step: int) -> Iterator[Chunk]:
        """Request the chunks of a step, one after the other, and yield each."""
        ...


class RolloutSource:
    """Completions sampled by the rollout gang and scored by the reward gang, if there is one.

    Generation runs up to `max_staleness` steps ahead of the step that is streamed; 0 is a synchronous run. An engine
    executes its calls in order, so weights published after the calls for step n + k are loaded after step n + k is
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
        prompts_per_chunk: int | None = None,
        store: RolloutStore | None = None,
        max_resamples: int = 0,
        rounds: Callable[[int], Draw] | None = None,
        is_frozen: bool = False,
    ) -> None:
        """Create the source.

        Args:
            on_begin: called for each chunk that has been requested ahead of its step.
            prompts_per_chunk: prompts that are sampled together, at most; None: all of a step.
            store: store of rollouts; None: nothing is stored.
            max_resamples: how often a step may sample further prompts for groups without signal.
            rounds: returns what a step draws, where steps differ; None: all draw alike, by the other arguments.
            is_frozen: the policy is never trained, so that every step samples from version 0.
        """
        assert not (max_resamples and max_staleness), "dynamic sampling needs the rewards of the step"
        self._on_begin, self._store, self._max_resamples = on_begin, store, max_resamples
        self._rollout, self._reward, self._prompts, self._sampling = rollout, reward, prompts, sampling
        self._prompts_per_step, self._max_staleness, self._max_steps = prompts_per_step, max_staleness, max_steps
        self._prompts_per_chunk = prompts_per_chunk or max(1, len(prompts))
        self._draw, self._is_frozen = rounds or self._alike, is_frozen
        self._ahead: dict[int, Sequence[Chunk]] = {}

    def stream(self, step: int) -> Iterator[Chunk]:
        if not self._max_staleness:
            yield from self._requested(step)
            return
        for future in range(step, min(step + self._max_staleness + 1, self._max_steps)):
            if future not in self._ahead:
                # All at once: a chunk requested later would be sampled from newer weights, depending on the clock.
                self._ahead[future] = chunks = list(self._request(future, self.rows(future)))
                for chunk in chunks:
                    self._on_begin(future, chunk)
        yield from self._ahead.pop(step)

    def _requested(self, step: int) -> Iterator[Chunk]:
        """Request the step's chunks, each once few enough of the earlier ones are left to be scored."""
        taken, first, resample = list(self.rows(step)), 0, 0
        rows, scores = taken, list[Handle[Scores]]()
        while rows:
            chunks = list[Chunk]()
            for chunk in self._request(step, rows, first, resample):
                chunks.append(chunk)
                if len(chunks) < UNSCORED:
                    continue
                # The first few together: whoever takes the first may wait for it, and the engines go on meanwhile.
                yield from chunks if len(chunks) == UNSCORED else [chunk]
                self._wait_for(step, chunk.index - UNSCORED + 1)
            yield from chunks if len(chunks) < UNSCORED else ()
            if not self._max_resamples:
                return
            first, scores = first + len(chunks), scores + [s for chunk in chunks for s in chunk.scores or ()]
            for chunk in chunks:
                self._wait_for(step, chunk.index)
            # Further prompts, until `prompts_per_step` groups have rewards that differ (DAPO, arXiv 2503.14476). The
            # driver reads rewards here, but no tokens.
            missing = self._prompts_per_step - self._num_with_signal(scores)
            rows = self.further_rows(step, taken, missing) if missing > 0 and resample < self._max_resamples else []
            taken, resample = taken + rows, resample + 1

    def _request(self, step: int, rows: Sequence[int], first: int = 0, resample: int = 0) -> Iterator[Chunk]:
        """Request chunks for `rows`, numbered from `first`.

        A chunk that is stored keeps its size: the run may resume with other engines, or other chunks.
        """
        index, left, draw = first, list(rows), self._draw(step)
        while left:
            stored = self._store.num_prompts(step, index) if self._store else None
            size = draw.prompts_per_chunk if stored is None else stored
            chunk = self._chunk(step, index, [self._prompts[i] for i in left[:size]], draw.sampling, resample)
            if self._store:
                self._store.register(step, chunk)
            yield chunk
            index, left = index + 1, left[size:]

    def _chunk(self, step: int, index: int, prompts: Sequence[Prompt], sampling: Sampling, resample: int) -> Chunk:
        """Read a chunk back if it is stored, else request it. Score it again only if no scores were stored."""
        stored = self._store.find(step, index) if self._store else None
        prefix = self._store.file_prefix(step, index) if self._store else None
        experience: Sequence[Handle[Experience]]
        stems = score_stems = None
        if stored is None:
            versions = (0, 0) if self._is_frozen else (max(0, step - self._max_staleness), step)
            experience, stems = generate(prompts, sampling, self._rollout, versions, prefix, index)
        else:
            experience = [self._rollout.one(Rollout.recall, stored.experience, prompts)]
        scores: Sequence[Handle[Scores]] | None
        if stored is not None and stored.scores is not None and self._reward is not None:
            scores = [self._reward.one(Reward.recall, stored.scores)]
        else:
            scores, score_stems = score(experience, self._reward, prefix)
        return Chunk(
            index=index,
            prompts=len(prompts),
            experience=experience,
            scores=scores,
            resample=resample if self._max_resamples else None,
            file_stems=stems,
            score_file_stems=score_stems,
        )

    def _wait_for(self, step: int, chunk: int) -> None:
        if chunk >= 0 and self._store is not None:
            self._store.wait_for(step, chunk)

    def _num_with_signal(self, scores: Sequence[Handle[Scores]]) -> int:
        rewards = merge_scores(wait(scores)).rewards.reshape(-1, self._sampling.num_generations)
        return int((rewards.max(1) > rewards.min(1)).sum()) if len(rewards) else 0

    def further_rows(self, step: int, taken: Sequence[int], count: int) -> list[int]:
        """Return the next prompts to sample: the first that are not `taken`, in a random order of the step.

        They depend only on (seed, step) and the step's rewards so far, so a resumed run chooses the same ones.
        """
        seed = int(np.random.SeedSequence([self._sampling.seed, RESAMPLING]).generate_state(1)[0])
        order = batch_indices(len(self._prompts), len(self._prompts), step, seed)
        return [int(row) for row in order[~np.isin(order, taken)][:count]]

    def rows(self, step: int) -> Sequence[int]:
        """Return the indices of the prompts that a step samples."""
        return self._draw(step).rows

    def _alike(self, step: int) -> Draw:
        size = min(self._prompts_per_step, len(self._prompts))  # no prompt twice
        rows = batch_indices(len(self._prompts), size, step, self._sampling.seed)
        return Draw(rows=rows.tolist(), sampling=self._sampling, prompts_per_chunk=self._prompts_per_chunk)


def retry_seed(seed: int, rollbacks: int) -> int:
    """Return the seed of prompts and samples after some rollbacks: with the same ones, steps would fail as before."""
    return seed if not rollbacks else int(np.random.SeedSequence([seed, rollbacks]).generate_state(1)[0]) >> 1


def completions_per_chunk(rollout: RolloutConfig) -> int:
    """Return how many completions all engines together sample in one chunk, if every sequence is as long as allowed."""
    longest = rollout.max_prompt_length + rollout.max_completion_length
    return max(1, rollout.num_engines * rollout.tokens_per_chunk // longest)


def sample(
    prompts: Sequence[Prompt],
    sampling: Sampling,
    rollout: Gang[Rollout],
    reward: Gang[Reward] | None,
    *,
    version: int | None = None,
    completions_per_chunk: int | None = None,
) -> PendingBatch:
    """Sample completions for `prompts` from `version` of the policy (None: any), and score them. Nothing is stored."""
    versions = None if version is None else (version, version)
    size = max(1, (completions_per_chunk or len(prompts) * sampling.num_generations) // sampling.num_generations)
    chunks = []
    for index, begin in enumerate(range(0, max(1, len(prompts)), size)):
        part = prompts[begin : begin + size]
        experience, _ = generate(part, sampling, rollout, versions, None, index)
        scores, _ = score(experience, reward, None)
        chunks.append(Chunk(index=index, prompts=len(part), experience=experience, scores=scores))
    return PendingBatch(chunks=chunks)


def generate(
    prompts: Sequence[Prompt],
    sampling: Sampling,
    rollout: Gang[Rollout],
    versions: tuple[int, int] | None,
    file_prefix: str | None,
    chunk: int,
) -> tuple[Sequence[Handle[Experience]], tuple[str, ...] | None]:
    """Sample completions for the prompts of one chunk, split over the engines in order.

    Args:
        versions: the oldest and the newest version of the policy that an engine may sample from; None: any.
        file_prefix: prefix of the files that the workers write their results to; None: they write none.

    Returns:
        Handles, and the stems of the files.
    """
    size = len(rollout)
    shards = [prompts[len(prompts) * i // size : len(prompts) * (i + 1) // size] for i in range(size)]
    handles = rollout.each(Rollout.generate, [(shard, sampling, versions, file_prefix, chunk) for shard in shards])
    return handles, None if file_prefix is None else tuple(f"{file_prefix}rollout-{i}" for i in range(size))


def score(
    experience: Sequence[Handle[Experience]], reward: Gang[Reward] | None, file_prefix: str | None
) -> tuple[Sequence[Handle[Scores]] | None, tuple[str, ...] | None]:
    """Score the experience of one chunk, if there is a reward gang. Return handles, and the stems of the files."""
    if reward is None:
        return None, None if file_prefix is None else ()
    stems = None if file_prefix is None else tuple(f"{file_prefix}reward-{i}" for i in range(len(reward)))
    return reward.all(Reward.score, experience, file_prefix), stems


class DatasetSource:
    """Rows of a dataset, tokenised by the encoder one step ahead of the learner. A step is one chunk."""

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
        self._ahead: dict[int, Chunk] = {}

    def stream(self, step: int) -> Iterator[Chunk]:
        for future in range(step, min(step + 2, self._max_steps)):
            if future not in self._ahead:
                rows = [self._examples[i] for i in self.rows(future)]
                handle = self._encoder.one(Encoder.encode, rows)
                self._ahead[future] = Chunk(index=0, prompts=len(rows), experience=[handle], scores=None)
                self._on_begin(future, self._ahead[future])
        yield self._ahead.pop(step)

    def rows(self, step: int) -> NDArray[np.int64]:
        """Return the indices of the examples that a step trains on."""
        size = min(self._batch_size, len(self._examples))
        return batch_indices(len(self._examples), size, step, self._seed)
