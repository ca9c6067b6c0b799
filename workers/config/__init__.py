"""Settings of each role and of each algorithm: frozen pydantic, unknown keys forbidden, vetted defaults.

Names are TRL's wherever TRL has one. Every number carries its legal range, so that an illegal recipe cannot be written.
The comment on a field, beside or above it, is its text in the configuration reference.
"""

from workers.config.algorithms import METHODS, AlgorithmConfig
from workers.config.base import Count, ModelOrigin, NonNegative, Objective, PathText, Positive, Settings, Share
from workers.config.distillation import DistillConfig
from workers.config.generation import AbstentionConfig, DeduplicationConfig, FiltersConfig, GenerateConfig
from workers.config.method import FromDataset, Head, Method, Needs, Sampled
from workers.config.optimisation import Optimisation
from workers.config.pairs import PairsConfig
from workers.config.policy_gradient import (
    AdaptiveKl,
    GrpoConfig,
    PolicyGradient,
    PpoConfig,
    ReinforceConfig,
    RlooConfig,
)
from workers.config.preferences import DpoConfig, KtoConfig
from workers.config.rewards import (
    DEFAULT_CLASSIFIER,
    ChatScorerConfig,
    ClassifierRewardConfig,
    CodeRewardConfig,
    Combine,
    FunctionRewardConfig,
    JsonSchemaRewardConfig,
    JudgeRewardConfig,
    MathRewardConfig,
    ModelRewardConfig,
    ModelScorerConfig,
    PairwiseRewardConfig,
    RefusalConfig,
    RefusalRewardConfig,
    RewardConfig,
    compares,
)
from workers.config.roles import (
    LearnerConfig,
    LoraConfig,
    ModelConfig,
    ReferenceConfig,
    RewardWorkersConfig,
    RolloutConfig,
    TeacherConfig,
)
from workers.config.supervised import RejectionSamplingConfig, RewardModelConfig, SftConfig

__all__ = [
    "DEFAULT_CLASSIFIER",
    "METHODS",
    "AbstentionConfig",
    "AdaptiveKl",
    "AlgorithmConfig",
    "ChatScorerConfig",
    "ClassifierRewardConfig",
    "CodeRewardConfig",
    "Combine",
    "Count",
    "DeduplicationConfig",
    "DistillConfig",
    "DpoConfig",
    "FiltersConfig",
    "FromDataset",
    "FunctionRewardConfig",
    "GenerateConfig",
    "GrpoConfig",
    "Head",
    "JsonSchemaRewardConfig",
    "JudgeRewardConfig",
    "KtoConfig",
    "LearnerConfig",
    "LoraConfig",
    "MathRewardConfig",
    "Method",
    "ModelConfig",
    "ModelOrigin",
    "ModelRewardConfig",
    "ModelScorerConfig",
    "Needs",
    "NonNegative",
    "Objective",
    "Optimisation",
    "PairsConfig",
    "PairwiseRewardConfig",
    "PathText",
    "PolicyGradient",
    "Positive",
    "PpoConfig",
    "ReferenceConfig",
    "RefusalConfig",
    "RefusalRewardConfig",
    "ReinforceConfig",
    "RejectionSamplingConfig",
    "RewardConfig",
    "RewardModelConfig",
    "RewardWorkersConfig",
    "RlooConfig",
    "RolloutConfig",
    "Sampled",
    "Settings",
    "SftConfig",
    "Share",
    "TeacherConfig",
    "compares",
]
