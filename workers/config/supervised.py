"""Settings of algorithms that learn from what a dataset shows."""

from __future__ import annotations

import math
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from workers.config.base import Count, NonNegative
from workers.config.optimisation import FromDataset, Sampled


class SftConfig(FromDataset):
    """Supervised fine-tuning on the completions of a dataset (of `messages` rows the last turn), or on all tokens."""

    type: Literal["sft"]
    completion_only_loss: bool = True  # false: prompts are learned, too; of `text` rows every token always is
    learning_rate: Annotated[float, Field(gt=0, le=1)] = 2e-5


class RewardModelConfig(FromDataset):
    """A reward model from preferences (Bradley-Terry): a number for a text, greater for the chosen one of a pair."""

    type: Literal["reward_model"]
    batch_size: Count = 64  # pairs per step
    learning_rate: Annotated[float, Field(gt=0, le=1)] = 1e-5
    center_rewards_coefficient: NonNegative = 0.0  # weight of (r_chosen + r_rejected)² (arXiv 2312.09244), e.g. 0.01
    margin_weight: NonNegative = 0.0  # times the row's `margin` (else 1): how far apart to be (arXiv 2307.09288)


class RejectionSamplingConfig(Sampled):
    """Fine-tuning on the best of the policy's own samples (RAFT, arXiv 2304.06767; RFT, arXiv 2308.01825)."""

    type: Literal["rejection_sampling"]
    learning_rate: Annotated[float, Field(gt=0, le=1)] = 2e-5
    keep_best: Count = 1  # of each prompt's completions
    min_reward: Annotated[float, Field(allow_inf_nan=False)] | None = None  # what is kept reaches it; None: all do
    distinct: bool = True  # equal completions of a prompt count once
    batch_size: Count = 32  # kept completions per optimiser update
    num_iterations: Count = 1  # passes over what is kept of each step

    @model_validator(mode="after")
    def no_more_than_there_are(self) -> Self:
        if self.keep_best > self.num_generations:
            raise ValueError("keep_best is how many of the num_generations completions are kept: it cannot be more")
        return self

    def num_updates(self, num_rows: int) -> int:
        return math.ceil(num_rows / self.batch_size)

    @property
    def epochs(self) -> int:
        return self.num_iterations
