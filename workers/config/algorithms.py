"""Every algorithm's settings, told apart by `type`."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from workers.config.distillation import DistillConfig
from workers.config.policy_gradient import GrpoConfig, PpoConfig, ReinforceConfig, RlooConfig
from workers.config.preferences import DpoConfig, KtoConfig
from workers.config.supervised import RejectionSamplingConfig, RewardModelConfig, SftConfig

AlgorithmConfig = Annotated[
    SftConfig
    | GrpoConfig
    | PpoConfig
    | DpoConfig
    | KtoConfig
    | RewardModelConfig
    | RejectionSamplingConfig
    | DistillConfig
    | RlooConfig
    | ReinforceConfig,
    Field(discriminator="type"),
]
