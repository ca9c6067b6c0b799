"""What one step of a recipe has to do: sequences, tokens, updates. Lengths are the only thing that must be guessed."""

from __future__ import annotations

import math
from dataclasses import dataclass

from orchestrator.config import RunConfig
from workers.config import (
    DistillConfig,
    DpoConfig,
    KtoConfig,
    PpoConfig,
    RejectionSamplingConfig,
    RewardModelConfig,
    Sampled,
)
from workers.config.optimisation import FromDataset
from workers.needs import NEEDS


@dataclass(frozen=True, kw_only=True, slots=True)
class Lengths:
    """Mean lengths in tokens, and dataset rows. None: half of what the recipe allows; a number of rows not known.

    Example: `Lengths(prompt=200, response=900)`.
    """

    prompt: float | None = None
    response: float | None = None
    rows: int | None = None  # of data.dataset


@dataclass(frozen=True, kw_only=True, slots=True)
class Work:
    """Of one step. `sequences` are completions, sampled or in the dataset's rows.

    Example: GRPO on 64 prompts with 16 completions each: `Work(groups=64, group=16, sequences=1024, sampled=True, …)`.
    """

    sampled: bool
    groups: int  # prompts or rows
    group: int  # completions of each
    prompt: float  # mean tokens
    response: float
    longest_response: int
    scored_group: int  # completions that are scored with one prompt
    learned_tokens: float  # of one pass over the step's batch, a shared prompt counted once per row
    row: float  # tokens of the shortest row that is never cut, at mean lengths: a pair, or a prompt with one completion
    longest_row: int  # likewise, with the longest that are allowed
    longest: int  # tokens of a prompt with one completion
    passes: int  # over the step's batch
    updates: int  # of the optimiser per step
    steps: int | None  # of the run; None: it ends with the dataset, whose rows are not known
    epochs: int  # of the dataset

    @property
    def sequences(self) -> int:
        return self.groups * self.group

    @property
    def context(self) -> float:
        """Mean tokens of a sequence."""
        return self.prompt + self.response

    def scored_tokens(self, budget: int) -> float:
        """Of a forward pass over all of the step's completions, in micro-batches of `budget`."""
        return self.groups * row_tokens(self.scored_group, self.prompt, self.response, budget)


def row_tokens(completions: int, prompt: float, response: float, budget: int) -> float:
    """Of one prompt with its completions: the prompt once, or once per part where all do not fit into `budget`.

    >>> row_tokens(16, 500.0, 1000.0, 8192)  # 7 at a time, so in three parts
    17500.0
    """
    together = max(1, min(completions, int((budget - prompt) // response)))
    return math.ceil(completions / together) * prompt + completions * response


def work_of(config: RunConfig, lengths: Lengths) -> Work:
    return _sampling(config, lengths) if config.data.prompts is not None else _dataset(config, lengths)


def _sampling(config: RunConfig, lengths: Lengths) -> Work:
    algorithm, rollout = config.algorithm, config.rollout
    assert isinstance(algorithm, Sampled)
    groups, group = algorithm.prompts_per_step, algorithm.num_generations
    prompt = min(lengths.prompt or rollout.max_prompt_length / 2, rollout.max_prompt_length)
    mean = rollout.max_completion_length if rollout.ignore_eos else rollout.max_completion_length / 2
    response = min(lengths.response or mean, rollout.max_completion_length)
    rows, of_row = groups, group  # training rows, and the completions that share each one's prompt
    if isinstance(algorithm, DpoConfig):
        most = group * (group - 1) // 2
        pairs = most if algorithm.pair_selection == "all" else min(algorithm.pairs_per_prompt, most)
        rows, of_row = groups * pairs, 2
    elif isinstance(algorithm, RejectionSamplingConfig):
        rows, of_row = groups * algorithm.keep_best, 1
    elif isinstance(algorithm, PpoConfig):
        rows, of_row = groups * group, 1
    uncut = of_row if NEEDS[algorithm.type].whole_rows else 1
    budget = config.policy.tokens_per_micro_batch
    learned = prompt + of_row * response if uncut > 1 else row_tokens(of_row, prompt, response, budget)
    return Work(
        sampled=True,
        groups=groups,
        group=group,
        prompt=prompt,
        response=response,
        longest_response=rollout.max_completion_length,
        scored_group=group,
        learned_tokens=rows * learned,
        row=prompt + uncut * response,
        longest_row=rollout.max_prompt_length + uncut * rollout.max_completion_length,
        longest=rollout.max_prompt_length + rollout.max_completion_length,
        passes=algorithm.epochs,
        updates=algorithm.epochs * algorithm.num_updates(rows),
        steps=algorithm.max_steps,
        epochs=1,
    )


def _dataset(config: RunConfig, lengths: Lengths) -> Work:
    algorithm, longest = config.algorithm, config.data.max_length
    assert isinstance(algorithm, FromDataset)
    pairs = isinstance(algorithm, DpoConfig | RewardModelConfig)
    prompt = min(lengths.prompt or longest / 4, longest)
    response = min(lengths.response or longest / 4, longest)
    of_row = 2 if pairs else 1
    rows = algorithm.batch_size
    # For a dataset one step is one update; DPO's num_iterations passes over it again.
    passes = algorithm.epochs if isinstance(algorithm, DpoConfig | DistillConfig) else 1
    steps, epochs = algorithm.max_steps, algorithm.num_train_epochs
    if lengths.rows is not None:
        steps = steps or math.ceil(lengths.rows * epochs / rows)
        epochs = math.ceil(steps * rows / lengths.rows)
    row = prompt + of_row * response
    # data.max_length is of a prompt with one completion.
    longest_row = longest if of_row == 1 else 2 * longest
    return Work(
        sampled=False,
        groups=rows,
        group=of_row,
        prompt=prompt,
        response=response,
        longest_response=longest,
        scored_group=of_row + isinstance(algorithm, KtoConfig),  # the mismatched completion, forward only
        learned_tokens=rows * row,
        row=row,
        longest_row=longest_row,
        longest=longest,
        passes=passes,
        updates=passes * algorithm.num_updates(rows),
        steps=steps,
        epochs=epochs,
    )
