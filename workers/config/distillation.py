"""Settings of algorithms that learn from another model's distributions."""

from __future__ import annotations

from typing import Literal

from workers.config.base import Count, Positive, Share
from workers.config.optimisation import FromDataset, Sampled


class DistillConfig(Sampled, FromDataset):
    """Generalised knowledge distillation (arXiv 2306.13649): on the policy's own samples of `data.prompts` (on-policy
    distillation), on the teacher's, or on the completions of `data.dataset`."""

    type: Literal["distill"]
    num_generations: Count = 1
    objective: Literal["divergence", "policy_gradient"] = "divergence"  # of whole distributions | of sampled tokens
    sampler: Literal["policy", "teacher"] = (
        "policy"  # who completes data.prompts: teacher is sequence-level distillation
    )
    beta: Share = 0.5  # 0: forward KL(teacher‖policy); 1: reverse KL(policy‖teacher); between: Jensen–Shannon
    temperature: Positive = 1.0  # of both distributions in the loss; rollout.temperature is that of sampling
    epsilon: Positive = 0.2  # policy_gradient: the ratio of new to old probability is kept within 1 ± it
    num_iterations: Count = 1  # passes over each step's batch
    num_mini_batches: Count = 1  # optimiser updates per pass

    def num_updates(self, num_rows: int) -> int:
        return min(self.num_mini_batches, num_rows)

    @property
    def epochs(self) -> int:
        return self.num_iterations
