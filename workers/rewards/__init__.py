"""Scorers: each turns completions into one number per completion."""

from __future__ import annotations

from workers.config import FunctionRewardConfig, MathRewardConfig, ModelRewardConfig, RewardConfig
from workers.rewards.base import Scorer
from workers.rewards.function import FunctionScorer
from workers.rewards.math import MathScorer


def build(config: RewardConfig) -> Scorer:
    """The scorer that a recipe's `reward:` entry asks for."""
    match config:
        case FunctionRewardConfig():
            return FunctionScorer(config)
        case MathRewardConfig():
            return MathScorer(config.solution_column)
        case ModelRewardConfig():
            from workers.rewards.model import ModelScorer  # not where only functions are called: it imports torch

            return ModelScorer(config)
