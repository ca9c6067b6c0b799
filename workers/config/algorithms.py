"""Register of the methods: a recipe's `algorithm` is one of these settings, selected by its `type`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, TypeAlias, Union

from pydantic import Field

from workers.config.distillation import DistillConfig
from workers.config.generation import GenerateConfig
from workers.config.method import Method
from workers.config.policy_gradient import GrpoConfig, PpoConfig, ReinforceConfig, RlooConfig
from workers.config.preferences import DpoConfig, KtoConfig
from workers.config.supervised import RejectionSamplingConfig, RewardModelConfig, SftConfig

ALGORITHMS: tuple[type[Method], ...] = (
    SftConfig,
    GrpoConfig,
    PpoConfig,
    DpoConfig,
    KtoConfig,
    RewardModelConfig,
    RejectionSamplingConfig,
    DistillConfig,
    RlooConfig,
    ReinforceConfig,
    GenerateConfig,
)
METHODS: Mapping[str, type[Method]] = {method.type_name(): method for method in ALGORITHMS}

if TYPE_CHECKING:
    AlgorithmConfig: TypeAlias = Method
else:
    AlgorithmConfig = Annotated[Union[ALGORITHMS], Field(discriminator="type")]  # noqa: UP007 - of a tuple
