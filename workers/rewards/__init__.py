"""Scorers: each returns one number per completion.

A scorer's module is imported when the scorer is built. `rlhf validate` uses the row checks of some modules and must not
load the others.
"""

from __future__ import annotations

from workers.config import (
    ClassifierRewardConfig,
    CodeRewardConfig,
    FunctionRewardConfig,
    JsonSchemaRewardConfig,
    JudgeRewardConfig,
    MathRewardConfig,
    ModelRewardConfig,
    PairwiseRewardConfig,
    RefusalRewardConfig,
    RewardConfig,
)
from workers.rewards.base import Scorer


def build(config: RewardConfig, *, num_cpus: int = 1) -> Scorer:
    """Build the scorer of a recipe's `reward` entry, for a worker with `num_cpus` cores."""
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
        case ClassifierRewardConfig():
            from workers.rewards.classifier import ClassifierScorer

            return ClassifierScorer(config)
        case PairwiseRewardConfig():
            from workers.rewards.pairwise import PairwiseScorer

            return PairwiseScorer(config)
        case JudgeRewardConfig():
            from workers.rewards.judge import JudgeScorer

            return JudgeScorer(config)
