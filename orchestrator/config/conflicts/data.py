"""Conflicts about data: sources, rewards, batches, lengths and sampling."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from orchestrator.config.conflicts.conflict import Conflict
from workers.config import METHODS, GrpoConfig, Sampled

if TYPE_CHECKING:
    from orchestrator.config.run import RunConfig


def trains_on_samples(config: RunConfig) -> bool:
    """Return whether the run trains on completions that it samples itself."""
    needs = config.algorithm.needs
    return config.data.prompts is not None and needs.prompts and needs.trains


def source(config: RunConfig) -> Iterator[Conflict]:
    kind, data = config.algorithm.type, config.data
    if data.from_stage is not None:
        yield Conflict(
            keys=("data.from_stage", "data.dataset"),
            why="both name a dataset",
            fix="remove one of them",
        )
    for key in ("prompts", "dataset", "eval_dataset"):  # where a source has from_stage alone, its path is known by now
        if any(source.from_stage is not None for source in data.sources(key)):
            yield Conflict(
                keys=(f"data.{key}",),
                why="a source has both path and from_stage, or from_stage where no data set of a stage is read",
                fix="give path alone, or from_stage alone in a source of data.dataset or data.prompts",
            )
    fitting = [key for key in ("prompts", "dataset") if getattr(config.algorithm.needs, key)]
    wanted = " or ".join(f"data.{key}" for key in fitting)
    if data.prompts is not None and config.rounds.mix.dataset:  # the dataset is mixed in
        return
    if (data.prompts is None) == (data.dataset is None):
        both = data.prompts is not None
        yield Conflict(
            keys=("data.prompts", "data.dataset"),
            why="both are given, a run trains on one" if both else "neither is given: there is nothing to train on",
            fix=f"for {kind} give {wanted}"
            + (" and set the other to null" if both else "")
            + (
                ", or mix pairs of the dataset in with rounds.mix.dataset"
                if both and config.algorithm.needs.rounds
                else ""
            ),
        )
        return
    given = "prompts" if data.prompts is not None else "dataset"
    if given not in fitting:
        trained_on = "completions that it samples itself" if given == "dataset" else "the completions of a dataset"
        fit = (name for name, method in METHODS.items() if getattr(method.needs, given) and method.needs.trains)
        others = " or ".join(fit)
        yield Conflict(
            keys=(f"data.{given}", "algorithm.type"),
            why=f"{kind} trains on {trained_on}",
            fix=f"give {wanted} instead, or choose {others} for algorithm.type",
        )


def reward(config: RunConfig) -> Iterator[Conflict]:
    if not config.algorithm.needs.trains:
        return
    has_teacher = config.algorithm.needs.teacher  # its training signal is the teacher, not a reward
    used_by = ["data.prompts"] if trains_on_samples(config) and not has_teacher else []
    used_by += ["data.eval_prompts"] if config.data.eval_prompts is not None else []
    evaluated = [f"data.{key}" for key in config.data.answered if key != "prompts"]
    if config.algorithm.needs.head == "scores" and evaluated:
        yield Conflict(
            keys=(*evaluated, "algorithm.type"),
            why="a reward model cannot answer prompts",
            fix="give held-out preferences as data.eval_dataset instead",
        )
        return
    if used_by and not config.reward:
        yield Conflict(
            keys=("reward", *used_by),
            why="completions are sampled for these prompts but nothing scores them",
            fix="add a reward, for example `reward: [{type: math}]`",
        )


def batches(config: RunConfig) -> Iterator[Conflict]:
    algorithm = config.algorithm
    if config.data.prompts is None or not isinstance(algorithm, Sampled):
        return
    if config.rollout.num_engines > algorithm.prompts_per_step:
        yield Conflict(
            keys=("rollout.num_engines", "algorithm.prompts_per_step"),
            why="the completions of a prompt are sampled by one engine, so some engines would be idle",
            fix=f"use at most {algorithm.prompts_per_step} engines, or more prompts per step",
        )
    by_group, rows = algorithm.needs.row == "group", algorithm.rows_per_step  # a group stays within one mini-batch
    if rows % algorithm.mini_batches:
        factors = (
            "groups (prompts_per_step)"
            if by_group
            else (
                f"completions (prompts_per_step {algorithm.prompts_per_step} × num_generations "
                f"{algorithm.num_generations})"
            )
        )
        keys = ("algorithm.num_mini_batches", "algorithm.prompts_per_step", "algorithm.num_generations")
        yield Conflict(
            keys=keys[:2] if by_group else keys,
            why=f"{rows} {factors} cannot be split into {algorithm.mini_batches} equal mini-batches",
            fix=f"num_mini_batches: {_nearest_divisors(rows, algorithm.mini_batches)}",
        )


def _nearest_divisors(number: int, wanted: int) -> str:
    divisors = [d for d in range(1, number + 1) if number % d == 0]
    below, above = [d for d in divisors if d < wanted][-1:], [d for d in divisors if d > wanted][:1]
    return " or ".join(str(d) for d in below + above)


def lengths(config: RunConfig) -> Iterator[Conflict]:
    rollout = config.rollout
    longest = rollout.max_prompt_length + rollout.max_completion_length
    if trains_on_samples(config) and longest > config.policy.tokens_per_micro_batch:
        yield Conflict(
            keys=(
                "policy.tokens_per_micro_batch",
                "rollout.max_prompt_length",
                "rollout.max_completion_length",
            ),
            why=f"a prompt with one completion may have {longest} tokens and is never split",
            fix=f"set tokens_per_micro_batch to at least {longest}, or shorten prompts or completions",
        )


def overlong(config: RunConfig) -> Iterator[Conflict]:
    algorithm, longest = config.algorithm, config.rollout.max_completion_length
    if isinstance(algorithm, GrpoConfig) and algorithm.overlong_length and algorithm.overlong_length > longest:
        yield Conflict(
            keys=("algorithm.overlong_length", "rollout.max_completion_length"),
            why=f"no completion has more than {longest} tokens, so the full penalty would never be reached",
            fix=f"set overlong_length to {longest}, with an overlong_buffer of at most as many tokens",
        )


def dynamic_sampling(config: RunConfig) -> Iterator[Conflict]:
    algorithm = config.algorithm
    if isinstance(algorithm, Sampled) and algorithm.resamples and config.max_staleness > 0:
        yield Conflict(
            keys=("algorithm.dynamic_sampling", "max_staleness"),
            why="further prompts are chosen by the rewards of the step, so generation cannot run ahead",
            fix="set max_staleness to 0, or dynamic_sampling to false",
        )


def sampling(config: RunConfig) -> Iterator[Conflict]:
    kind = config.algorithm.type
    if config.algorithm.needs.on_policy:
        for key, neutral in reshaped(config):
            yield Conflict(
                keys=(f"rollout.{key}", "algorithm.type"),
                why=f"{kind} compares log-probabilities of the engine and the learner, over the whole vocabulary",
                fix=f"set rollout.{key} to {neutral} (rollout.temperature is accounted for)",
            )
    if config.max_staleness > 0 and config.data.prompts is None:
        yield Conflict(
            keys=("max_staleness", "data.dataset"),
            why="a dataset is not sampled from the policy, so it cannot become stale",
            fix="set max_staleness to 0",
        )


def reshaped(config: RunConfig) -> Iterator[tuple[str, str]]:
    """Yield each `rollout` key that cuts the sampled distribution, with the value that does not."""
    if config.rollout.top_p < 1:
        yield "top_p", "1.0"
    if config.rollout.top_k > 0:
        yield "top_k", "0"
