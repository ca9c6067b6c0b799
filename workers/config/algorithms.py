"""Every algorithm's settings, told apart by `type`."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from workers.config.policy_gradient import GrpoConfig, PpoConfig, ReinforceConfig, RlooConfig
from workers.config.preferences import DpoConfig
from workers.config.supervised import SftConfig

AlgorithmConfig = Annotated[
    SftConfig | GrpoConfig | PpoConfig | DpoConfig | RlooConfig | ReinforceConfig,
    Field(discriminator="type"),
]
