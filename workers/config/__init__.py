"""Settings of each role and of each algorithm: frozen pydantic, unknown keys forbidden, defaults that are vetted.

Names are TRL's wherever TRL has one. Every number carries its legal range, so that an illegal recipe cannot be written.
"""

from workers.config.algorithms import AlgorithmConfig
from workers.config.base import Count, NonNegative, Positive, Settings, Share
from workers.config.optimisation import FromDataset, Optimisation, Sampled
from workers.config.policy_gradient import GrpoConfig, PpoConfig
from workers.config.preferences import DpoConfig
from workers.config.rewards import FunctionRewardConfig, MathRewardConfig, RewardConfig
from workers.config.roles import (
    LearnerConfig,
    LoraConfig,
    ModelConfig,
    ReferenceConfig,
    RewardWorkersConfig,
    RolloutConfig,
)
from workers.config.supervised import SftConfig

__all__ = [
    "AlgorithmConfig",
    "Count",
    "DpoConfig",
    "FromDataset",
    "FunctionRewardConfig",
    "GrpoConfig",
    "LearnerConfig",
    "LoraConfig",
    "MathRewardConfig",
    "ModelConfig",
    "NonNegative",
    "Optimisation",
    "Positive",
    "PpoConfig",
    "ReferenceConfig",
    "RewardConfig",
    "RewardWorkersConfig",
    "RolloutConfig",
    "Sampled",
    "Settings",
    "SftConfig",
    "Share",
]
