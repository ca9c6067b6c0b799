"""Settings of algorithms that learn from what a dataset shows."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from workers.config.base import Count, NonNegative
from workers.config.optimisation import FromDataset


class SftConfig(FromDataset):
    """Supervised fine-tuning on the completions of a dataset."""

    type: Literal["sft"]
    learning_rate: Annotated[float, Field(gt=0, le=1)] = 2e-5


class RewardModelConfig(FromDataset):
    """A reward model from preferences (Bradley-Terry): a number for a text, greater for the chosen one of a pair."""

    type: Literal["reward_model"]
    batch_size: Count = 64  # pairs per step
    learning_rate: Annotated[float, Field(gt=0, le=1)] = 1e-5
    center_rewards_coefficient: NonNegative = 0.0  # weight of (r_chosen + r_rejected)² (arXiv 2312.09244), e.g. 0.01
    margin_weight: NonNegative = 0.0  # the rewards of a pair must differ by this times its margin (arXiv 2307.09288)
