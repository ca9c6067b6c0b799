"""Conflicts of scorers: how their scores make a reward, their votes, and win rates within a group."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from orchestrator.config.conflicts.conflict import Conflict
from orchestrator.config.conflicts.data import trains_on_samples
from workers.config import DpoConfig, JudgeRewardConfig, RejectionSamplingConfig, RewardConfig, compares
from workers.config.endpoint import endpoint_problems

if TYPE_CHECKING:
    from orchestrator.config.run import RunConfig


def voters(config: RunConfig) -> list[RewardConfig]:
    """Return the rewards that count: those whose weight is not 0."""
    return [reward for reward in config.reward if reward.weight]


def combination(config: RunConfig) -> Iterator[Conflict]:
    if config.reward_combine != "min":
        return
    weights = [reward.weight for reward in voters(config)]
    if len(weights) < 2 or min(weights) < 0:
        yield Conflict(
            keys=("reward_combine", "reward"),
            why="the lowest of several scores is taken, and a negative weight would take the highest",
            fix="give two or more rewards with positive weights, or set reward_combine to sum",
        )


def normalization(config: RunConfig) -> Iterator[Conflict]:
    algorithm = config.algorithm
    if config.reward_normalize is None:
        return
    if not trains_on_samples(config) or algorithm.needs.teacher:
        yield Conflict(
            keys=("reward_normalize", "algorithm.type"),
            why="scores are normalised to train on them, and this run does not train on scores of its own samples",
            fix="remove reward_normalize",
        )
    elif group_size(config) < 2:
        yield Conflict(
            keys=("reward_normalize", "algorithm.num_generations"),
            why="the only completion of a group is its own mean, so that every reward would be 0",
            fix="set algorithm.num_generations to 2 or more, or remove reward_normalize",
        )
    if isinstance(algorithm, RejectionSamplingConfig) and algorithm.min_reward is not None:
        yield Conflict(
            keys=("reward_normalize", "algorithm.min_reward"),
            why="min_reward is a limit of the scores themselves, and normalised scores have mean 0 in every group",
            fix="remove reward_normalize or min_reward",
        )


def pairwise(config: RunConfig) -> Iterator[Conflict]:
    """Yield where a completion would have no other one to be compared with."""
    if not any(compares(reward) for reward in config.reward):
        return
    trains = config.algorithm.needs.trains
    if (trains_on_samples(config) or not trains) and group_size(config) < 2:
        yield Conflict(
            keys=("reward", "algorithm.num_generations"),
            why="a pairwise reward compares the completions of a prompt, and there is one",
            fix="set algorithm.num_generations to 2 or more, or give a reward of type model",
        )
    if trains and config.data.eval_prompts is not None and all(compares(r) for r in config.reward):
        yield Conflict(
            keys=("reward", "data.eval_prompts"),
            why="an evaluation has one completion of each prompt, and a pairwise reward compares several",
            fix="add a reward of another type, such as a function or a model, or remove data.eval_prompts",
        )
    elif config.best_round_by is not None and all(compares(r) for r in voters(config)):
        yield Conflict(
            keys=("reward", "export.round"),
            why=f"{config.best_round_by} would be the same in every round: win rates have a mean of 1/2, and the other "
            "rewards have weight 0",
            fix="set export.round to last, or give a reward of another type a weight",
        )


def endpoints(config: RunConfig) -> Iterator[Conflict]:
    for i, reward in enumerate(config.reward):
        if isinstance(reward, JudgeRewardConfig):
            for keys, why, fix in endpoint_problems(reward):
                yield Conflict(keys=tuple(f"reward.{i}.{key}" for key in keys), why=why, fix=fix)


def agreement(config: RunConfig) -> Iterator[Conflict]:
    algorithm = config.algorithm
    if not isinstance(algorithm, DpoConfig) or config.data.prompts is None:
        return
    for key, is_set, other in (
        ("algorithm.soft_labels", algorithm.soft_labels == "votes", "set soft_labels to margin"),
        ("algorithm.pairs.min_agreement", algorithm.pairs.min_agreement is not None, "remove min_agreement"),
    ):
        if is_set and len(voters(config)) < 2:
            yield Conflict(
                keys=(key, "reward"),
                why="the rewards vote by their weights, and one alone would decide",
                fix=f"give two or more rewards with a weight, or {other}",
            )


def win_rates(config: RunConfig) -> Iterator[Conflict]:
    algorithm = config.algorithm
    if not isinstance(algorithm, DpoConfig) or algorithm.soft_labels != "win_rate":
        return
    if algorithm.loss_type != "sppo":
        yield Conflict(
            keys=("algorithm.soft_labels", "algorithm.loss_type"),
            why="a win rate is against the whole group, and only SPPO compares a completion with all of it",
            fix="set loss_type to sppo, or soft_labels to margin",
        )
    counted = voters(config)
    if (
        config.data.prompts is None
        or len(counted) != 1
        or not compares(counted[0])
        or counted[0].weight != 1
        or config.reward_normalize is not None
    ):
        yield Conflict(
            keys=("algorithm.soft_labels", "reward"),
            why="the score of a completion is its label, and only a pairwise reward alone is a win rate",
            fix="give data.prompts and one reward of type pairwise with weight 1.0 (others with 0.0), not normalised",
        )


def group_size(config: RunConfig) -> int:
    """Return the number of completions of a prompt that the run trains on."""
    return int(getattr(config.algorithm, "num_generations", 1))
