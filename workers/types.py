"""The words that travel between roles: plain, frozen, numpy only.

Token data is flat. A batch of sequences is one long array plus offsets (`Ragged`), never a padded
rectangle: it crosses Ray's object store without a copy and arrives read-only.

    prompts ──generate──► Experience ──score──► Scores ──prepare──► TrainBatch ──learn──► StepStats
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from enum import IntEnum
from typing import Any, Self, TypeAlias

import numpy as np
from numpy.typing import NDArray

Ints: TypeAlias = NDArray[np.int32]
Floats: TypeAlias = NDArray[np.float32]
Text: TypeAlias = str | Sequence[Mapping[str, Any]]
"""A string, or a conversation `[{"role": "user", "content": "hi"}]`, as TRL's dataset formats have it."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Ragged:
    """Sequences of differing length in one flat array.

    >>> Ragged(values=np.array([5, 6, 7]), offsets=np.array([0, 2, 3]))[0]
    array([5, 6])
    """

    values: NDArray[Any]  # [T]
    offsets: NDArray[np.int64]  # [N + 1], rising from 0 to T

    @classmethod
    def of(cls, sequences: Sequence[NDArray[Any] | Sequence[int]], dtype: type = np.int32) -> Self:
        lengths = [len(s) for s in sequences]
        values = np.concatenate([np.asarray(s, dtype) for s in sequences]) if sequences else np.zeros(0, dtype)
        return cls(values=values, offsets=np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64))

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def __getitem__(self, index: int) -> NDArray[Any]:
        return self.values[self.offsets[index] : self.offsets[index + 1]]

    def __iter__(self) -> Iterator[NDArray[Any]]:
        return (self[i] for i in range(len(self)))

    @property
    def lengths(self) -> NDArray[np.int64]:  # [N]
        return np.diff(self.offsets)

    def positions(self, indices: NDArray[np.int64]) -> NDArray[np.int64]:
        """Where the values of the sequences `indices` stand in the flat array, in that order: [sum of lengths]."""
        lengths = self.lengths[indices]
        starts = np.repeat(self.offsets[indices] - np.concatenate([[0], np.cumsum(lengths)[:-1]]), lengths)
        return starts + np.arange(int(lengths.sum()), dtype=np.int64)

    def take(self, indices: NDArray[np.int64]) -> Ragged:
        lengths = self.lengths[indices]
        return Ragged(
            values=self.values[self.positions(indices)],
            offsets=np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64),
        )


def concat(parts: Sequence[Ragged]) -> Ragged:
    """The sequences of all parts, one after the other."""
    lengths = np.concatenate([p.lengths for p in parts])
    return Ragged(
        values=np.concatenate([p.values for p in parts]),
        offsets=np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64),
    )


class Finish(IntEnum):
    """Why a completion ended."""

    stop = 0  # the end-of-sequence token was sampled; it is the completion's last token
    length = 1  # max_completion_length reached
    aborted = 2  # the engine gave it up


@dataclass(frozen=True, kw_only=True, slots=True)
class Prompt:
    """One prompt of a dataset, as it was read.

    Example: `Prompt(id="prompts.jsonl:17", text="hcafb>", columns={"solution": "abcfh"})`.
    `columns` holds the row's further fields; reward functions receive them by name.
    """

    id: str
    text: Text
    columns: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True, slots=True)
class Example:
    """One row of a dataset: a prompt with the completions that came with it, best first.

    Example (preference): `Example(prompt=Prompt(id="pairs.jsonl:3", text="2+2="), completions=("4", "5"),
    scores=(1.0, 0.0))`; a demonstration for SFT has one completion and no scores (`None`), feedback for KTO one with
    the score 1.0 or 0.0, and a row of ratings as many as were rated.
    """

    prompt: Prompt
    completions: tuple[Text, ...]
    scores: tuple[float, ...] | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Sampling:
    """How completions are drawn. `temperature=0` is greedy. `seed` is the run's: each completion derives its own."""

    num_generations: int
    max_completion_length: int
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0  # 0: all tokens
    ignore_eos: bool = False  # every completion runs to max_completion_length
    seed: int = 0


@dataclass(frozen=True, kw_only=True, slots=True)
class Experience:
    """Groups of completions: G prompts, N completions; group g owns completions group_offsets[g]:group_offsets[g+1].

    Example: two prompts with two completions each: `group_offsets = [0, 2, 4]`, `len(completions) == 4`.
    """

    prompts: tuple[Prompt, ...]  # [G]
    prompt_tokens: Ragged  # int32, G sequences
    completions: Ragged  # int32, N sequences
    group_offsets: NDArray[np.int64]  # [G + 1]
    logprobs: Floats | None  # [T] of the distribution that was really sampled; None: not sampled here (a dataset)
    versions: Ints  # [N] weights each completion was sampled from
    finish: Ints  # [N] Finish
    rewards: Floats | None = None  # [N] scores that came with a dataset; None: to be scored, or none needed
    temperature: float = 1.0  # the sampling temperature that `logprobs` refer to
    num_dropped: int = 0  # prompts or rows left out because they were too long
    num_truncated: int = 0  # completions of a dataset that lost their end
    seconds: float = 0.0  # time it took to make

    @property
    def group_of(self) -> NDArray[np.int64]:  # [N]
        return np.repeat(np.arange(len(self.prompts)), np.diff(self.group_offsets))


def merge(parts: Sequence[Experience]) -> Experience:
    """The experience of several engines (or readers) as one; groups stay whole and in order."""
    if len(parts) == 1:
        return parts[0]
    sizes = np.concatenate([np.diff(p.group_offsets) for p in parts])
    logprobs = [p.logprobs for p in parts if p.logprobs is not None]
    rewards = [p.rewards for p in parts if p.rewards is not None]
    return Experience(
        prompts=tuple(prompt for p in parts for prompt in p.prompts),
        prompt_tokens=concat([p.prompt_tokens for p in parts]),
        completions=concat([p.completions for p in parts]),
        group_offsets=np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64),
        logprobs=np.concatenate(logprobs) if len(logprobs) == len(parts) else None,
        versions=np.concatenate([p.versions for p in parts]),
        finish=np.concatenate([p.finish for p in parts]),
        rewards=np.concatenate(rewards) if len(rewards) == len(parts) else None,
        temperature=parts[0].temperature,
        num_dropped=sum(p.num_dropped for p in parts),
        num_truncated=sum(p.num_truncated for p in parts),
        seconds=max(p.seconds for p in parts),
    )


@dataclass(frozen=True, kw_only=True, slots=True)
class Sample:
    """One completion as a person reads it; a few of each step are kept in `samples/`."""

    prompt_id: str
    prompt: str
    completion: str
    reward: float
    version: int
    finish: str  # Finish.name
    length: int  # tokens


@dataclass(frozen=True, kw_only=True, slots=True)
class Scores:
    """Rewards of an Experience: one number per completion.

    Example: `Scores(rewards=[1., 0.], by_scorer={"exact_sort": [1., 0.]}, samples=())`. A NaN in `by_scorer` says that
    this scorer passed on that completion; `rewards` is always finite.
    """

    rewards: Floats  # [N] weighted sum over the scorers
    by_scorer: Mapping[str, Floats]  # each [N]
    samples: tuple[Sample, ...] = ()
    seconds: float = 0.0


def merge_scores(parts: Sequence[Scores]) -> Scores:
    return Scores(
        rewards=np.concatenate([p.rewards for p in parts]),
        by_scorer={name: np.concatenate([p.by_scorer[name] for p in parts]) for name in parts[0].by_scorer},
        samples=tuple(s for p in parts for s in p.samples),
        seconds=max(p.seconds for p in parts),
    )


@dataclass(frozen=True, kw_only=True, slots=True)
class TokenShard:
    """One number per token for some of an Experience's completions: a rank's share of log-probabilities or values; or
    one vector, of hidden states."""

    completions: NDArray[np.int64]  # [n] which completions
    values: NDArray[Any]  # [their tokens], in that order; vectors: [their tokens, h]
    seconds: float = 0.0

    @property
    def has_vectors(self) -> bool:
        return self.values.ndim == 2


def assemble(shares: Sequence[TokenShard], completions: Ragged) -> Floats:
    """The shares of all ranks as one array aligned with `completions.values`; ValueError when a token is missing."""
    whole = np.full(len(completions.values), np.nan, np.float32)
    for share in shares:
        whole[completions.positions(share.completions)] = share.values
    if np.isnan(whole).any():
        raise ValueError(f"{int(np.isnan(whole).sum())} of {len(whole)} tokens got no number, or not a finite one")
    return whole


def log_ratios(experience: Experience, shares: Sequence[TokenShard]) -> Floats:
    """Of each sampled completion [N], in nats: Σ_t log π(y_t) − log π_ref(y_t), of the policy it was sampled from and
    the model that `shares` come from. Its mean is the k1 estimate of KL(π‖π_ref)."""
    if experience.logprobs is None:
        raise ValueError("a distance is measured on sampled completions; this experience comes from a dataset")
    ratios = experience.logprobs - assemble(shares, experience.completions)
    return np.add.reduceat(ratios, experience.completions.offsets[:-1]) if len(ratios) else np.zeros(0, np.float32)


@dataclass(frozen=True, kw_only=True, slots=True)
class Measures:
    """Numbers of each of N completions, without its tokens.

    Example: `Measures(prompt_ids=("test.jsonl:0", "test.jsonl:0"), lengths=[6, 7], finish=[0, 0],
    log_ratios=[0.8, -0.1])`.
    """

    prompt_ids: tuple[str, ...]  # [N]
    lengths: NDArray[np.int64]  # [N] tokens, with the one that ends it
    finish: Ints  # [N] Finish
    log_ratios: Floats | None  # [N] nats; None: there was nothing to compare with


@dataclass(frozen=True, kw_only=True, slots=True)
class PairMargins:
    """By how much a reward model prefers the chosen to the rejected completion, of some held-out pairs.

    Example: `PairMargins(groups=[0, 2], values=[1.5, -0.2], sources=("web", None))`: the second pair's row has no
    `source` column.
    """

    groups: NDArray[np.int64]  # [n] which pairs of the experience
    values: Floats  # [n]
    sources: tuple[str | None, ...]  # [n]


def merge_margins(parts: Sequence[PairMargins]) -> PairMargins:
    """Those of all ranks, in the order of the pairs."""
    groups = np.concatenate([p.groups for p in parts])
    order = np.argsort(groups)
    sources = [source for p in parts for source in p.sources]
    return PairMargins(
        groups=groups[order],
        values=np.concatenate([p.values for p in parts])[order],
        sources=tuple(sources[i] for i in order),
    )


@dataclass(frozen=True, kw_only=True, slots=True)
class TokenVectors:
    """A vector for each of T tokens, left in the pieces that the ranks of a gang answered: [T, h] of a whole step would
    be gigabytes, so only what is taken is copied. float32, or uint16 that are the bits of bfloat16."""

    pieces: tuple[NDArray[Any], ...]  # each [t, h]
    piece: NDArray[np.int64]  # [T] which of them
    place: NDArray[np.int64]  # [T] which row of it

    def __len__(self) -> int:
        return len(self.piece)

    def of(self, tokens: NDArray[np.int64]) -> TokenVectors:
        """Those of `tokens` [t], in that order; nothing is copied."""
        return TokenVectors(pieces=self.pieces, piece=self.piece[tokens], place=self.place[tokens])

    def take(self, tokens: NDArray[np.int64]) -> NDArray[Any]:
        """Those of `tokens` [t] in one array: [t, h]."""
        first = self.pieces[0]
        taken = np.empty((len(tokens), first.shape[1]), first.dtype)
        piece, place = self.piece[tokens], self.place[tokens]
        for i in np.unique(piece):
            here = piece == i
            taken[here] = self.pieces[i][place[here]]
        return taken


def assemble_vectors(shares: Sequence[TokenShard], completions: Ragged) -> TokenVectors:
    """The shares of all ranks, aligned with `completions.values`; ValueError when a token is missing."""
    pieces = [share for share in shares if share.has_vectors]
    piece, place = np.full(len(completions.values), -1, np.int64), np.zeros(len(completions.values), np.int64)
    for i, share in enumerate(pieces):
        tokens = completions.positions(share.completions)
        piece[tokens], place[tokens] = i, np.arange(len(tokens))
    if (piece < 0).any():
        raise ValueError(f"{int((piece < 0).sum())} of {len(piece)} tokens got no vector")
    return TokenVectors(pieces=tuple(share.values for share in pieces), piece=piece, place=place)


SATURATED = 10.0
"""Nats of log-ratio beyond which a completion's DPO gradient is gone."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Drift:
    """How far the policy that sampled a batch is from the reference, over `num_completions` completions.

    Example: `Drift(kl=0.8, spread=0.3, saturated=0.02, num_completions=512)`.
    """

    kl: float  # mean over completions of the sum of log-ratios (nats)
    spread: float  # standard deviation of that sum
    saturated: float  # share of completions whose |log-ratio sum| is over SATURATED
    num_completions: int


@dataclass(frozen=True, kw_only=True, slots=True)
class ScoredBatch:
    """Everything an algorithm's `prepare` may look at; what its `needs` did not ask for is None."""

    experience: Experience
    rewards: Floats | None  # [N]
    reference_logprobs: Floats | None  # [T], aligned with experience.completions.values
    values: Floats | None  # [T], the critic's, likewise
    reference_hidden: TokenVectors | None = None  # [T, h] states the reference predicts each token from
    seed: int = 0  # of (run, step): for choices made at random
    learner_logprobs: Floats | None = None  # [T] by the policy itself before it learns, at the sampling temperature

    @property
    def old_logprobs(self) -> Floats:
        """[T] of the policy that a step starts from: the learner's own where it was asked, else the engine's."""
        old = self.learner_logprobs if self.learner_logprobs is not None else self.experience.logprobs
        assert old is not None, "these completions were not sampled here"
        return old


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainBatch:
    """What is learned from in one step: R rows, each a prompt with the completions that share it.

    A row is a group, a preference pair (chosen first, rejected second) or a single completion. All of it is learned
    from in one optimiser update: a group that is longer than a micro-batch in several of them.
    N completions of T tokens in all; the token fields are aligned with `completions.values`. A field that the
    algorithm does not use is None.
    """

    prompts: Ragged  # int32, R sequences
    completions: Ragged  # int32, N sequences
    row_offsets: NDArray[np.int64]  # [R + 1]: row r owns completions row_offsets[r]:row_offsets[r+1]
    old_logprobs: Floats | None = None  # [T] of the policy that sampled them
    reference_logprobs: Floats | None = None  # [T]
    reference_hidden: TokenVectors | None = None  # [T, h]: with it the loss is given divergences, not log-probabilities
    advantages: Floats | None = None  # [T]
    old_values: Floats | None = None  # [T]
    returns: Floats | None = None  # [T]
    margins: Floats | None = None  # [R] score of chosen minus score of rejected
    importance_weights: Floats | None = None  # [T] of each token's loss; None: 1
    sources: NDArray[np.int64] | None = None  # [N] which completion of the experience this is; None: the same order
    labels: Floats | None = None  # [R] 1: desirable, 0: not
    baseline: TrainBatch | None = None  # the same rows with completions to compare with: measured, never learned from

    def __post_init__(self) -> None:
        num_tokens, num_rows = len(self.completions.values), len(self.row_offsets) - 1
        if len(self.prompts) != num_rows or self.row_offsets[-1] != len(self.completions):
            raise ValueError(
                f"{num_rows} rows do not cover {len(self.prompts)} prompts, {len(self.completions)} completions"
            )
        for name in ("old_logprobs", "reference_logprobs", "advantages", "old_values", "returns", "importance_weights"):
            values = getattr(self, name)
            if values is not None and values.shape != (num_tokens,):
                raise ValueError(
                    f"TrainBatch.{name} has shape {values.shape}, the completions have {num_tokens} tokens"
                )
        if self.reference_hidden is not None and len(self.reference_hidden) != num_tokens:
            raise ValueError(
                f"TrainBatch.reference_hidden has {len(self.reference_hidden)} vectors, the completions have "
                f"{num_tokens} tokens"
            )

        if self.baseline is not None and self.baseline.num_rows != num_rows:
            raise ValueError(f"TrainBatch.baseline has {self.baseline.num_rows} rows, the batch {num_rows}")

    @property
    def num_rows(self) -> int:
        return len(self.row_offsets) - 1


@dataclass(frozen=True, kw_only=True, slots=True)
class Totals:
    """What a loss is given of one whole optimiser update over all ranks: sizes, for denominators, and the baseline."""

    rows: int
    completions: int
    tokens: int
    desirable: int = 0  # rows whose label is 1
    baseline: float | None = None  # mean log π(y) − log π_ref(y) of the baseline's completions; None: there are none


Metrics: TypeAlias = dict[str, float]


@dataclass(frozen=True, kw_only=True, slots=True)
class StepStats:
    """What one rank says of one step. `sums` of all ranks add up to the metric, of `maxima` the largest counts, of
    `minima` the smallest; `facts` are the same on every rank.

    Example: `StepStats(sums={"loss": 0.35}, maxima={}, facts={"reward": 0.5, "grad_norm": 1.2})`.
    """

    sums: Metrics
    maxima: Metrics
    facts: Metrics
    minima: Metrics = field(default_factory=dict)
    left: int = 0  # optimiser updates of the step that this call did not make


def merge_ranks(parts: Sequence[StepStats]) -> StepStats:
    """What the ranks of a gang say of one span, as one."""
    first = parts[0]
    return StepStats(
        sums={name: sum(p.sums[name] for p in parts) for name in first.sums},
        maxima={name: max(p.maxima[name] for p in parts) for name in first.maxima},
        minima={name: min(p.minima[name] for p in parts) for name in first.minima},
        facts=first.facts,
        left=first.left,
    )


def flat(stats: StepStats) -> Metrics:
    """As a row of metrics has it."""
    return {**stats.facts, **stats.sums, **stats.maxima, **stats.minima}


def merge_stats(parts: Sequence[StepStats]) -> Metrics:
    """One set of metrics from the ranks of a gang."""
    return flat(merge_ranks(parts))
