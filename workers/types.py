"""Data exchanged between roles: frozen dataclasses of numpy arrays. Imports nothing heavier.

A batch of sequences is one flat array plus offsets (`Ragged`), never a padded rectangle: it crosses Ray's object
store without a copy and arrives read-only.

    prompts ──generate──► Experience ──score──► Scores ──prepare──► TrainBatch ──learn──► StepStats
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import IntEnum
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from workers.ragged import Ragged, TokenVectors, concat

Ints: TypeAlias = NDArray[np.int32]
Floats: TypeAlias = NDArray[np.float32]
Text: TypeAlias = str | Sequence[Mapping[str, Any]]
"""A string, or a conversation in TRL's dataset format: `[{"role": "user", "content": "hi"}]`."""


class Finish(IntEnum):
    """Reason why a completion ended."""

    stop = 0  # the end-of-sequence token was sampled; it is the completion's last token
    length = 1  # max_completion_length reached
    aborted = 2  # the engine abandoned it


@dataclass(frozen=True, kw_only=True, slots=True)
class Prompt:
    """One prompt of a dataset.

    Example: `Prompt(id="prompts.jsonl:17", text="hcafb>", columns={"solution": "abcfh"})`.
    `columns` holds the other fields of the row; reward functions receive them by name.
    """

    id: str
    text: Text
    columns: Mapping[str, Any] = field(default_factory=dict)
    gold: Text | None = None  # answer that joins the samples of its group; None: it has none, or none is wanted
    objective: str | None = None  # name that the metrics of its row are reported under; None: not apart


@dataclass(frozen=True, kw_only=True, slots=True)
class Example:
    """One row of a dataset: a prompt with its completions, best first.

    Example (preference): `Example(prompt=Prompt(id="pairs.jsonl:3", text="2+2="), completions=("4", "5"),
    scores=(1.0, 0.0))`. An SFT demonstration has one completion and no scores (`None`), KTO feedback one completion
    with score 1.0 or 0.0, and a row of ratings one score for each completion.
    """

    prompt: Prompt
    completions: tuple[Text, ...]
    scores: tuple[float, ...] | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Sampling:
    """Sampling parameters. `temperature=0` is greedy. `seed` is the run's; each completion derives its own from it."""

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
    logprobs: Floats | None  # [T] under the distribution that was sampled from; None: not sampled here (a dataset)
    versions: Ints  # [N] weights each completion was sampled from; −1: not sampled, a gold answer (`gold.py`)
    finish: Ints  # [N] Finish
    rewards: Floats | None = None  # [N] scores that a dataset provides; None: to be scored, or not needed
    temperature: float = 1.0  # the sampling temperature that `logprobs` refer to
    num_dropped: int = 0  # prompts or rows left out because they were too long
    num_truncated: int = 0  # completions of a dataset that were truncated
    seconds: float = 0.0  # time to generate or encode
    chunk: int = 0  # number of the chunk within its step, from 0

    @property
    def group_of(self) -> NDArray[np.int64]:  # [N]
        return np.repeat(np.arange(len(self.prompts)), np.diff(self.group_offsets))


def merge(parts: Sequence[Experience]) -> Experience:
    """Concatenate the experience of several engines or encoders, or of several chunks. Groups stay whole and in order.

    The result counts as one chunk, with the number of the first.
    """
    if len(parts) == 1:
        return parts[0]
    sizes = np.concatenate([np.diff(p.group_offsets) for p in parts])
    return Experience(
        prompts=tuple(prompt for p in parts for prompt in p.prompts),
        prompt_tokens=concat([p.prompt_tokens for p in parts]),
        completions=concat([p.completions for p in parts]),
        group_offsets=np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64),
        logprobs=_joined([p.logprobs for p in parts]),
        versions=np.concatenate([p.versions for p in parts]),
        finish=np.concatenate([p.finish for p in parts]),
        rewards=_joined([p.rewards for p in parts]),
        temperature=parts[0].temperature,
        num_dropped=sum(p.num_dropped for p in parts),
        num_truncated=sum(p.num_truncated for p in parts),
        seconds=_seconds(parts),
        chunk=parts[0].chunk,
    )


def _joined(arrays: Sequence[Floats | None]) -> Floats | None:
    """Concatenate arrays; None if one of them is missing."""
    given = [array for array in arrays if array is not None]
    return np.concatenate(given) if len(given) == len(arrays) else None


def _seconds(parts: Sequence[Experience] | Sequence[Scores]) -> float:
    """Return the time that the parts took. Those of a chunk are made at the same time, chunks one after the other."""
    longest: dict[int, float] = {}
    for part in parts:
        longest[part.chunk] = max(part.seconds, longest.get(part.chunk, 0.0))
    return sum(longest.values())


@dataclass(frozen=True, kw_only=True, slots=True)
class Sample:
    """One completion as text. A few of each step are written to `samples/`."""

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

    Example: `Scores(rewards=[1., 0.], by_scorer={"exact_sort": [1., 0.]}, samples=())`. A NaN in `by_scorer` means
    that the scorer abstained on that completion; `rewards` is always finite.
    """

    rewards: Floats  # [N] weighted sum, or minimum, over the scorers
    by_scorer: Mapping[str, Floats]  # each [N]
    samples: tuple[Sample, ...] = ()
    seconds: float = 0.0
    chunk: int = 0  # that of the experience
    weights: Mapping[str, float] = field(default_factory=dict)  # of the scorers; one that is missing: 1
    normalized: Floats | None = None  # [N] rewards of normalised scores, to train on; None: `rewards`
    usage: Mapping[str, float] = field(default_factory=dict)  # of scorers that count, such as {"judge/requests": 8}


def merge_scores(parts: Sequence[Scores]) -> Scores:
    """Concatenate the scores of several reward workers, or of several chunks."""
    return Scores(
        rewards=np.concatenate([p.rewards for p in parts]),
        by_scorer={name: np.concatenate([p.by_scorer[name] for p in parts]) for name in parts[0].by_scorer},
        samples=tuple(s for p in parts for s in p.samples),
        seconds=_seconds(parts),
        chunk=parts[0].chunk,
        weights=parts[0].weights,
        normalized=_joined([p.normalized for p in parts]),
        usage={name: sum(p.usage.get(name, 0.0) for p in parts) for name in parts[0].usage},
    )


@dataclass(frozen=True, kw_only=True, slots=True)
class TokenShard:
    """One rank's share of per-token results: log-probabilities, values or hidden states of some completions."""

    completions: NDArray[np.int64]  # [n] indices into the experience of the chunk
    values: NDArray[Any]  # [t] numbers or [t, h] vectors: of the tokens of these completions, in that order
    seconds: float = 0.0
    chunk: int = 0  # that of the experience

    @property
    def has_vectors(self) -> bool:
        return self.values.ndim == 2


def merge_shards(shares: Sequence[TokenShard], parts: Sequence[Experience]) -> list[TokenShard]:
    """Return the shards with indices into the merged experience, `merge(parts)`."""
    starts: dict[int, int] = {}
    total = 0
    for part in parts:
        starts.setdefault(part.chunk, total)
        total += len(part.completions)
    return [replace(share, completions=share.completions + starts[share.chunk]) for share in shares]


def assemble(shares: Sequence[TokenShard], completions: Ragged) -> Floats:
    """Combine the shares of all ranks into one array aligned with `completions.values`.

    Raises:
        ValueError: a token has no number, or NaN.
    """
    values = np.full(len(completions.values), np.nan, np.float32)
    for share in shares:
        values[completions.positions(share.completions)] = share.values
    if np.isnan(values).any():
        raise ValueError(f"{int(np.isnan(values).sum())} of {len(values)} tokens have no value, or NaN")
    return values


def log_ratios(experience: Experience, shares: Sequence[TokenShard]) -> Floats:
    """Return Σ_t log π(y_t) − log π_ref(y_t) for each completion, in nats: [N].

    π is the policy that sampled the completion, π_ref the model that computed `shares`. The mean is the k1 estimate of
    KL(π‖π_ref).

    Raises:
        ValueError: the experience comes from a dataset, so there is no π.
    """
    if experience.logprobs is None:
        raise ValueError("log-ratios need sampled completions; this experience comes from a dataset")
    ratios = experience.logprobs - assemble(shares, experience.completions)
    return np.add.reduceat(ratios, experience.completions.offsets[:-1]) if len(ratios) else np.zeros(0, np.float32)


def assemble_vectors(shares: Sequence[TokenShard], completions: Ragged) -> TokenVectors:
    """Combine the vectors of all ranks, aligned with `completions.values`.

    Raises:
        ValueError: a token has no vector.
    """
    pieces = [share for share in shares if share.has_vectors]
    piece, place = np.full(len(completions.values), -1, np.int64), np.zeros(len(completions.values), np.int64)
    for i, share in enumerate(pieces):
        tokens = completions.positions(share.completions)
        piece[tokens], place[tokens] = i, np.arange(len(tokens))
    if (piece < 0).any():
        raise ValueError(f"{int((piece < 0).sum())} of {len(piece)} tokens have no vector")
    return TokenVectors(pieces=tuple(share.values for share in pieces), piece=piece, place=place)


Z95 = 1.96
"""Standard errors on either side of a mean in a 95 % confidence interval."""
SATURATED = 10.0
"""Log-ratio in nats beyond which the DPO gradient of a completion vanishes."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Drift:
    """Distance of the policy that sampled a batch from the reference, over `num_completions` completions.

    Both are taken at the sampling temperature. `kl` is the k1 estimate of KL(policy‖reference): the mean log-ratio of
    the policy's own samples. Its standard error is over prompts, because completions of a prompt are alike.

    Example: `Drift(kl=0.8, kl_error=0.02, spread=0.3, saturated=0.02, num_completions=512)`.
    """

    kl: float  # mean log-ratio of a completion, in nats
    kl_error: float  # standard error of `kl`, over prompts; with one prompt over completions
    spread: float  # standard deviation of the log-ratios
    saturated: float  # share of completions with |log-ratio| > SATURATED
    num_completions: int

    @property
    def interval(self) -> tuple[float, float]:
        """Bounds of the 95 % confidence interval of the KL."""
        return self.kl - Z95 * self.kl_error, self.kl + Z95 * self.kl_error


@dataclass(frozen=True, kw_only=True, slots=True)
class ScoredBatch:
    """Input of an algorithm's `prepare`. Fields that its `needs` do not ask for are None."""

    experience: Experience
    rewards: Floats | None  # [N]
    reference_logprobs: Floats | None  # [T], aligned with experience.completions.values
    values: Floats | None  # [T] of the critic, aligned in the same way
    reference_hidden: TokenVectors | None = None  # [T, h] hidden states from which the reference predicts each token
    seed: int = 0  # for random choices; derived from the run's seed and the step
    learner_logprobs: Floats | None = None  # [T] of the policy before this step, at the sampling temperature
    by_scorer: Mapping[str, Floats] | None = None  # each [N], as in `Scores`; None: not scored here (a dataset)
    weights: Mapping[str, float] = field(default_factory=dict)  # of the scorers, as in `Scores`
    raw_rewards: Floats | None = None  # [N] rewards of scores that are not normalised; None: `rewards`

    @property
    def old_logprobs(self) -> Floats:
        """Log-probabilities [T] of the policy before this step: the learner's if computed, else the engine's."""
        old = self.learner_logprobs if self.learner_logprobs is not None else self.experience.logprobs
        assert old is not None, "a dataset has no old log-probabilities"
        return old


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainBatch:
    """Training data of one step: R rows, each a prompt with the completions that share it.

    A row is a group, a preference pair (chosen first, rejected second) or a single completion. All completions of a
    row enter the same optimiser update; a row that exceeds a micro-batch is split over several micro-batches.
    There are N completions with T tokens in total. Token fields are aligned with `completions.values`. Fields that the
    algorithm does not use are None.
    """

    prompts: Ragged  # int32, R sequences
    completions: Ragged  # int32, N sequences
    row_offsets: NDArray[np.int64]  # [R + 1]: row r owns completions row_offsets[r]:row_offsets[r+1]
    old_logprobs: Floats | None = None  # [T] of the policy before this step
    reference_logprobs: Floats | None = None  # [T]
    reference_hidden: TokenVectors | None = None  # [T, h]; with them the loss is given divergences
    advantages: Floats | None = None  # [T]
    old_values: Floats | None = None  # [T]
    returns: Floats | None = None  # [T]
    margins: Floats | None = None  # [R] score of chosen minus score of rejected
    soft_labels: Floats | None = None  # [N] probability that it is preferred; None: 1 if chosen, 0 if rejected
    importance_weights: Floats | None = None  # [T] factor of each token's loss; None: 1
    sources: NDArray[np.int64] | None = None  # [N] index of each completion in the experience; None: the same order
    labels: Floats | None = None  # [R] 1: desirable, 0: undesirable
    objectives: NDArray[np.int64] | None = None  # [R] index into objective_names; −1: none; None: no row has one
    objective_names: tuple[str, ...] = ()
    baseline: TrainBatch | None = None  # the same rows with other completions: measured, never trained on

    def __post_init__(self) -> None:
        num_tokens, num_rows = len(self.completions.values), len(self.row_offsets) - 1
        if len(self.prompts) != num_rows or self.row_offsets[-1] != len(self.completions):
            raise ValueError(
                f"{num_rows} rows do not cover {len(self.prompts)} prompts, {len(self.completions)} completions"
            )
        for name in ("old_logprobs", "reference_logprobs", "advantages", "old_values", "returns", "importance_weights"):
            values = getattr(self, name)
            if values is not None and values.shape != (num_tokens,):
                raise ValueError(f"TrainBatch.{name} has shape {values.shape} for {num_tokens} tokens")
        if self.reference_hidden is not None and len(self.reference_hidden) != num_tokens:
            raise ValueError(f"reference_hidden has {len(self.reference_hidden)} vectors for {num_tokens} tokens")
        if self.baseline is not None and self.baseline.num_rows != num_rows:
            raise ValueError(f"TrainBatch.baseline has {self.baseline.num_rows} rows, the batch {num_rows}")

    @property
    def num_rows(self) -> int:
        return len(self.row_offsets) - 1
