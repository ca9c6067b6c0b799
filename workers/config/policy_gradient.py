"""Settings of algorithms that follow the gradient of a reward on their own samples."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from workers.config.base import Count, NonNegative, Positive, Share
from workers.config.optimisation import Sampled


class GrpoConfig(Sampled):
    """Group-relative policy optimisation (arXiv 2402.03300) and its kin by argument."""

    type: Literal["grpo"]
    num_generations: Annotated[int, Field(ge=2)] = 8
    beta: NonNegative = 0.0  # KL coefficient; 0: no reference is loaded
    kl_placement: Literal["loss", "reward"] = "loss"
    epsilon: Positive = 0.2
    epsilon_high: Positive | None = None  # None: equal to epsilon
    scale_rewards: Literal["group", "batch", "none"] = "group"
    loss_type: Literal["dapo", "grpo", "dr_grpo"] = "dapo"  # token mean | mean of sequence means | fixed length
    fixed_length: Count | None = None  # dr_grpo: each completion's sum is divided by it
    num_iterations: Count = 1  # passes over each step's batch
    num_mini_batches: Count = 1  # optimiser updates per pass
    mask_truncated_completions: bool = False

    @model_validator(mode="after")
    def length_of_dr_grpo(self) -> Self:
        if (self.loss_type == "dr_grpo") != (self.fixed_length is not None):
            raise ValueError(
                "fixed_length goes with loss_type dr_grpo alone; rollout.max_completion_length is the usual length"
            )
        return self

    def num_updates(self, num_rows: int) -> int:
        return min(self.num_mini_batches, num_rows)

    @property
    def epochs(self) -> int:
        return self.num_iterations

    @property
    def needs_reference(self) -> bool:
        return self.beta > 0


class PpoConfig(Sampled):
    """Proximal policy optimisation (arXiv 1707.06347) with a critic, as in InstructGPT (arXiv 2203.02155)."""

    type: Literal["ppo"]
    num_generations: Count = 1
    kl_coef: NonNegative = 0.05  # 0: no reference is loaded
    cliprange: Positive = 0.2
    cliprange_value: Positive = 0.2
    gamma: Share = 1.0
    lam: Share = 0.95
    whiten_rewards: bool = False
    missing_eos_penalty: Positive | None = None
    num_ppo_epochs: Count = 4
    num_mini_batches: Count = 1
    critic_learning_rate: Annotated[float, Field(gt=0, le=1)] = 1e-5

    def num_updates(self, num_rows: int) -> int:
        return min(self.num_mini_batches, num_rows)

    @property
    def epochs(self) -> int:
        return self.num_ppo_epochs

    @property
    def needs_reference(self) -> bool:
        return self.kl_coef > 0
