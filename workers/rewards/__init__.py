"""Scorers: each turns completions into one number per completion."""

from __future__ import annotations

from workers.config import (
    CodeRewardConfig,
    FunctionRewardConfig,
    JsonSchemaRewardConfig,
    MathRewardConfig,
    ModelRewardConfig,
    RefusalRewardConfig,
    RewardConfig,
)
from workers.rewards.base import Scorer
from workers.rewards.code import CodeScorer
from workers.rewards.function import FunctionScorer
from workers.rewards.json_schema import JsonSchemaScorer
from workers.rewards.math import MathScorer
from workers.rewards.refusal import RefusalScorer


def build(config: RewardConfig, *, num_cpus: int = 1) -> Scorer:
    """The scorer that a recipe's `reward:` entry asks for, on a worker with so many cores."""
    match config:
        case FunctionRewardConfig():
            return FunctionScorer(config)
        case MathRewardConfig():
            return MathScorer(config.solution_column)
        case CodeRewardConfig():
            return CodeScorer(config, num_parallel=num_cpus)
        case JsonSchemaRewardConfig():
            return JsonSchemaScorer(config)
        case RefusalRewardConfig():
            return RefusalScorer(config)
        case ModelRewardConfig():
            from workers.rewards.model import ModelScorer  # not where only functions are called: it imports torch

            return ModelScorer(config)
