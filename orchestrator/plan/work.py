"""Amount of work in one step of a recipe: sequences, tokens, updates. Only the mean lengths have to be assumed."""

from __future__ import annotations

import math
import sys
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from orchestrator.config import RunConfig
from workers.config import FromDataset, Sampled


@dataclass(frozen=True, kw_only=True, slots=True)
class Lengths:
    """Mean lengths in tokens, and dataset rows. None: half of the recipe's maximum; the rows of a local .jsonl file.

    Example: `Lengths(prompt=200, response=900)`.
    """

    prompt: float | None = None
    response: float | None = None
    rows: int | None = None  # of data.dataset; of data.prompts, where each is sampled once


@dataclass(frozen=True, kw_only=True, slots=True)
class Work:
    """Work of one step. `sequences` are completions, sampled or in the dataset's rows.

    Example: GRPO on 64 prompts with 16 completions each: `Work(groups=64, group=16, sequences=1024, sampled=True, …)`.
    """

    sampled: bool
    groups: int  # prompts or rows
    group: int  # completions per prompt or row
    prompt: float  # mean tokens
    response: float  # mean tokens
    longest_response: int  # tokens
    scored_group: int  # completions that are scored with one prompt
    learned_tokens: float  # tokens of one pass over the step's batch; a shared prompt counts once per row
    row: float  # mean tokens of the smallest unit that is never split: a pair, or a prompt with one completion
    longest_row: int  # maximum tokens of that unit
    longest: int  # maximum tokens of a prompt with one completion
    passes: int  # passes over the step's batch
    updates: int  # optimiser updates per step
    steps: int | None  # steps of the run; None: it ends with the dataset, whose size is unknown
    epochs: int  # passes over the dataset
    mixed: int = 0  # given pairs that are mixed into a round

    @property
    def sequences(self) -> int:
        return self.groups * self.group

    @property
    def context(self) -> float:
        """Mean tokens of a sequence."""
        return self.prompt + self.response

    def scored_tokens(self, budget: int) -> float:
        """Return the tokens of a forward pass over the step's completions, in micro-batches of `budget` tokens."""
        return self.groups * row_tokens(self.scored_group, self.prompt, self.response, budget)


def row_tokens(completions: int, prompt: float, response: float, budget: int) -> float:
    """Return the tokens of a prompt with its completions, split into parts of at most `budget` tokens.

    Each part repeats the prompt.

    >>> row_tokens(16, 500.0, 1000.0, 8192)  # 7 at a time, so in three parts
    17500.0
    """
    together = max(1, min(completions, int((budget - prompt) // response)))
    return math.ceil(completions / together) * prompt + completions * response


def sampled_lengths(config: RunConfig, lengths: Lengths) -> tuple[float, float]:
    """Return the mean tokens of a prompt and of a completion that the engines sample."""
    rollout = config.rollout
    mean = rollout.max_completion_length if rollout.ignore_eos else rollout.max_completion_length / 2
    prompt = min(lengths.prompt or rollout.max_prompt_length / 2, rollout.max_prompt_length)
    return prompt, min(lengths.response or mean, rollout.max_completion_length)


def rows_of(source: str | None) -> int | None:
    """Return the number of rows of a local .jsonl file; None for any other source."""
    if source is None or not source.endswith(".jsonl") or not Path(source).is_file():
        return None
    return _count_rows(source, Path(source).stat().st_mtime_ns)


@lru_cache(maxsize=64)
def _count_rows(source: str, changed_ns: int) -> int:
    with Path(source).open("rb") as file:
        return sum(1 for line in file if line.strip())


def work_of(config: RunConfig, lengths: Lengths) -> Work:
    return _sampling(config, lengths) if config.data.prompts is not None else _dataset(config, lengths)


def _sampling(config: RunConfig, lengths: Lengths) -> Work:
    algorithm, rollout = config.algorithm, config.rollout
    assert isinstance(algorithm, Sampled)
    groups, group = algorithm.prompts_per_step, algorithm.num_generations
    prompt, response = sampled_lengths(config, lengths)
    mixed = num_mixed(config, lengths.rows)
    rows, completions = algorithm.rows_per_step + mixed, algorithm.completions_per_row
    unsplit = completions if algorithm.needs.whole_rows else 1
    budget = config.policy.tokens_per_micro_batch
    learned = prompt + completions * response if unsplit > 1 else row_tokens(completions, prompt, response, budget)
    return Work(
        sampled=True,
        groups=groups,
        group=group,
        prompt=prompt,
        response=response,
        longest_response=rollout.max_completion_length,
        scored_group=group,
        learned_tokens=rows * learned,
        row=prompt + unsplit * response,
        longest_row=rollout.max_prompt_length + unsplit * rollout.max_completion_length,
        longest=rollout.max_prompt_length + rollout.max_completion_length,
        passes=algorithm.epochs,
        updates=algorithm.epochs * algorithm.num_updates(rows),
        steps=algorithm.max_steps if algorithm.needs.trains else _steps_of_generation(config, lengths),
        epochs=1,
        mixed=mixed,
    )


def _steps_of_generation(config: RunConfig, lengths: Lengths) -> int | None:
    """Return the number of steps in which every prompt is sampled once; None: the number of prompts is unknown."""
    assert isinstance(config.algorithm, Sampled)
    counts = [lengths.rows] if lengths.rows else [rows_of(source) for source in config.data.prompt_sources]
    known = [count for count in counts if count is not None]
    return math.ceil(sum(known) / config.algorithm.prompts_per_step) if len(known) == len(counts) else None


def num_mixed(config: RunConfig, rows: int | None = None) -> int:
    """Return the number of given pairs that are mixed into a late round, at most. `rows`: those of the dataset."""
    own, algorithm = config.rounds.mix, config.algorithm
    if not own.is_on:
        return 0
    assert isinstance(algorithm, Sampled)
    rounds = max(0, (algorithm.max_steps or 1) - 1)
    made = algorithm.rows_per_step * (rounds if own.last is None else min(rounds, own.last))
    earlier = min(round(own.earlier_rounds * algorithm.prompts_per_step), made)
    return earlier + min(
        round(own.dataset * algorithm.prompts_per_step), rows or rows_of(config.data.dataset) or sys.maxsize
    )


def _dataset(config: RunConfig, lengths: Lengths) -> Work:
    algorithm, longest = config.algorithm, config.data.max_length
    assert isinstance(algorithm, FromDataset)
    prompt = min(lengths.prompt or longest / 4, longest)
    response = min(lengths.response or longest / 4, longest)
    completions = 2 if algorithm.needs.row == "pair" else 1
    rows, passes = algorithm.batch_size, algorithm.epochs
    steps, epochs = algorithm.max_steps, algorithm.num_train_epochs
    if num_rows := lengths.rows or rows_of(config.data.dataset):
        steps = steps or math.ceil(num_rows * epochs / rows)
        epochs = math.ceil(steps * rows / num_rows)
    row = prompt + completions * response
    # data.max_length limits a prompt with one completion.
    longest_row = longest if completions == 1 else 2 * longest
    return Work(
        sampled=False,
        groups=rows,
        group=completions,
        prompt=prompt,
        response=response,
        longest_response=longest,
        scored_group=completions + algorithm.needs.mismatched,  # the mismatched completion, forward only
        learned_tokens=rows * row,
        row=row,
        longest_row=longest_row,
        longest=longest,
        passes=passes,
        updates=passes * algorithm.num_updates(rows),
        steps=steps,
        epochs=epochs,
    )
