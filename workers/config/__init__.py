"""Settings of each role and of each algorithm: frozen pydantic, unknown keys forbidden, defaults that are vetted.

Names are TRL's wherever TRL has one. Every number carries its legal range, so that an illegal recipe cannot be written.
"""

from workers.config.algorithms import AlgorithmConfig
from workers.config.base import Count, NonNegative, Positive, Settings, Share
from workers.config.optimisation import FromDataset, Optimisation, Sampled
from workers.config.policy_gradient import (
    AdaptiveKl,
    GrpoConfig,
    PolicyGradient,
    PpoConfig,
    ReinforceConfig,
    RlooConfig,
)
from workers.config.preferences import DpoConfig
from workers.config.rewards import FunctionRewardConfig, MathRewardConfig, RewardConfig
from workers.config.roles import LearnerConfig, ModelConfig, ReferenceConfig, RewardWorkersConfig, RolloutConfig
from workers.config.supervised import SftConfig

__all__ = [
    "AdaptiveKl",
    "AlgorithmConfig",
    "Count",
    "DpoConfig",
    "FromDataset",
    "FunctionRewardConfig",
    "GrpoConfig",
    "LearnerConfig",
    "MathRewardConfig",
    "ModelConfig",
    "NonNegative",
    "Optimisation",
    "PolicyGradient",
    "Positive",
    "PpoConfig",
    "ReferenceConfig",
    "ReinforceConfig",
    "RewardConfig",
    "RewardWorkersConfig",
    "RlooConfig",
    "RolloutConfig",
    "Sampled",
    "Settings",
    "SftConfig",
    "Share",
]
