"""Scorers: each turns completions into one number per completion.

A scorer is imported where it is built: `rlhf validate` reads what some of them say of a row, and wants no other.
"""

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


def build(config: RewardConfig, *, num_cpus: int = 1) -> Scorer:
    """Return the scorer that a recipe's `reward:` entry asks for, on a worker with so many cores."""
    match config:
        case FunctionRewardConfig():
            from workers.rewards.function import FunctionScorer

            return FunctionScorer(config)
        case MathRewardConfig():
            from workers.rewards.math import MathScorer

            return MathScorer(config.solution_column)
        case CodeRewardConfig():
            from workers.rewards.code import CodeScorer

            return CodeScorer(config, num_parallel=num_cpus)
        case JsonSchemaRewardConfig():
            from workers.rewards.json_schema import JsonSchemaScorer

            return JsonSchemaScorer(config)
        case RefusalRewardConfig():
            from workers.rewards.refusal import RefusalScorer

            return RefusalScorer(config)
        case ModelRewardConfig():
            from workers.rewards.model import ModelScorer

            return ModelScorer(config)
