"""Settings of the methods that train on another model's distributions."""

from __future__ import annotations

from typing import ClassVar, Literal

from workers.config.base import Count, Positive, Share
from workers.config.method import FromDataset, Needs, Sampled


class DistillConfig(Sampled, FromDataset):
    """Generalised knowledge distillation (arXiv 2306.13649): on the policy's own samples of `data.prompts` (on-policy
    distillation), on the teacher's samples, or on the completions of `data.dataset`."""

    needs: ClassVar[Needs] = Needs(row="group", prompts=True, dataset="demonstrations", teacher=True)
    implementation: ClassVar[str] = "workers.algorithms.distill"

    type: Literal["distill"]  # distillation of a teacher into the policy
    num_generations: Count = 1  # number of completions sampled per prompt
    # objective; divergence: between the two models' distributions over the vocabulary; policy_gradient: reverse KL
    # estimated from the sampled tokens
    objective: Literal["divergence", "policy_gradient"] = "divergence"
    # model that samples the completions of data.prompts; teacher: sequence-level distillation
    sampler: Literal["policy", "teacher"] = "policy"
    # divergence to minimise; 0: forward KL(teacher‖policy); 1: reverse KL(policy‖teacher); between: generalised
    # Jensen–Shannon divergence
    beta: Share = 0.5
    temperature: Positive = 1.0  # temperature of both distributions in the loss (rollout.temperature: of sampling)
    epsilon: Positive = 0.2  # clip range of the probability ratio, kept within 1 ± epsilon; for policy_gradient
    num_iterations: Count = 1  # number of passes over each step's batch
    num_mini_batches: Count = 1  # number of optimiser updates per pass over a step's batch

    def num_updates(self, num_rows: int) -> int:
        return min(self.num_mini_batches, num_rows)

    @property
    def mini_batches(self) -> int:
        return self.num_mini_batches

    @property
    def epochs(self) -> int:
        return self.num_iterations

    @property
    def teacher_samples(self) -> bool:
        return self.sampler == "teacher"

    @property
    def divergence_beta(self) -> float | None:
        return self.beta if self.objective == "divergence" else None

    def loss_temperature(self, sampling: float) -> float:
        return self.temperature
