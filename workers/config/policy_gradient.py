"""Settings of algorithms that follow the gradient of a reward on their own samples."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from workers.config.base import Count, NonNegative, Positive, Settings, Share
from workers.config.optimisation import Sampled


class PolicyGradient(Sampled):
    """What they have in common.

    With `vllm_importance_sampling_correction` the old log-probabilities are the learner's own, and a token's loss is
    weighted by how much likelier the learner finds it than the engine did. A ratio (of a token, or of a whole
    completion) above the cap is cut down to the cap (truncate) or to 0 (mask).
    """

    num_mini_batches: Count = 1  # optimiser updates per pass
    vllm_importance_sampling_correction: bool = False
    vllm_importance_sampling_mode: Literal["token_truncate", "token_mask", "sequence_truncate", "sequence_mask"] = (
        "sequence_mask"
    )
    vllm_importance_sampling_clip_max: Positive = 3.0

    def num_updates(self, num_rows: int) -> int:
        return min(self.num_mini_batches, num_rows)

    @property
    def needs_old_logprobs(self) -> bool:
        return self.vllm_importance_sampling_correction


class GrpoConfig(PolicyGradient):
    """Group-relative policy optimisation (arXiv 2402.03300) and its kin by argument."""

    type: Literal["grpo"]
    num_generations: Annotated[int, Field(ge=2)] = 8
    beta: NonNegative = 0.0  # KL coefficient; 0: no reference is loaded
    kl_placement: Literal["loss", "reward"] = "loss"
    use_bias_correction_kl: bool = False  # k3 in the loss times the ratio: another gradient, see grpo.py (TRL: true)
    epsilon: Positive = 0.2
    epsilon_high: Positive | None = None  # None: equal to epsilon; cispo: the largest weight itself
    delta: Positive | None = None  # largest ratio also where the advantage is negative; None: none
    importance_sampling_level: Literal["token", "sequence"] = "token"
    scale_rewards: Literal["group", "batch", "none"] = "group"
    loss_type: Literal["dapo", "grpo", "dr_grpo", "cispo"] = "dapo"  # token mean | mean of means | fixed length | CISPO
    fixed_length: Count | None = None  # dr_grpo: each completion's sum is divided by it
    num_iterations: Count = 1  # passes over each step's batch
    mask_truncated_completions: bool = False
    overlong_buffer: Count | None = None  # the last tokens before overlong_length cost up to 1 of reward; None: off
    overlong_length: Count | None = None  # tokens; what is this long or longer loses 1
    dynamic_sampling: bool = False  # groups of equal rewards are replaced by those of further prompts, and left out
    max_resamples: Count = 4  # rounds of further prompts per step

    @model_validator(mode="after")
    def length_of_dr_grpo(self) -> Self:
        if (self.loss_type == "dr_grpo") != (self.fixed_length is not None):
            raise ValueError(
                "fixed_length goes with loss_type dr_grpo alone; rollout.max_completion_length is the usual length"
            )
        return self

    @model_validator(mode="after")
    def bounds_of_the_ratio(self) -> Self:
        if self.loss_type == "cispo" and (self.epsilon_high is None or self.delta is not None):
            raise ValueError(
                "loss_type cispo has one bound, the largest weight itself: give epsilon_high (5.0 is usual), not delta"
            )
        if self.delta is not None and self.delta <= 1 + (self.epsilon_high or self.epsilon):
            raise ValueError(
                "delta is a ratio and must be above 1 + epsilon_high (1 + epsilon where that is not given)"
            )
        return self

    @model_validator(mode="after")
    def overlong_pair(self) -> Self:
        if (self.overlong_buffer is None) != (self.overlong_length is None):
            raise ValueError(
                "overlong_buffer and overlong_length go together; rollout.max_completion_length is the usual length"
            )
        if self.overlong_buffer and self.overlong_length and self.overlong_buffer > self.overlong_length:
            raise ValueError("overlong_buffer is the end of overlong_length and cannot be longer than it")
        return self

    @property
    def epochs(self) -> int:
        return self.num_iterations

    @property
    def needs_reference(self) -> bool:
        return self.beta > 0


class RlooConfig(PolicyGradient):
    """REINFORCE with the mean of the group's others as baseline (RLOO, arXiv 2402.14740)."""

    type: Literal["rloo"]
    num_generations: Annotated[int, Field(ge=2)] = 2
    beta: NonNegative = 0.05  # of the KL in the reward; 0: no reference is loaded
    epsilon: Positive = 0.2
    epsilon_high: Positive | None = None  # None: equal to epsilon
    normalize_advantages: bool = False  # mean 0 and deviation 1 over the step
    num_iterations: Count = 1  # passes over each step's batch
    vllm_importance_sampling_mode: Literal["sequence_truncate", "sequence_mask"] = "sequence_mask"

    @property
    def epochs(self) -> int:
        return self.num_iterations

    @property
    def needs_reference(self) -> bool:
        return self.beta > 0


class ReinforceConfig(PolicyGradient):
    """REINFORCE++ (arXiv 2501.03262): PPO's clipped objective without a critic."""

    type: Literal["reinforce++"]
    num_generations: Count = 8
    baseline: Literal["none", "group"] = "none"  # group: its mean is taken off the score first
    beta: NonNegative = 0.05  # of each token's KL in the reward; 0: no reference is loaded
    gamma: Share = 1.0
    epsilon: Positive = 0.2
    epsilon_high: Positive | None = None  # None: equal to epsilon
    num_iterations: Count = 1  # passes over each step's batch

    @model_validator(mode="after")
    def group_of_the_baseline(self) -> Self:
        if self.baseline == "group" and self.num_generations < 2:
            raise ValueError("baseline group needs num_generations of 2 or more: the mean of one completion is its own")
        return self

    @property
    def epochs(self) -> int:
        return self.num_iterations

    @property
    def needs_reference(self) -> bool:
        return self.beta > 0


class AdaptiveKl(Settings):
    """A KL coefficient that holds the KL near a target (arXiv 1909.08593, section 2.2)."""

    target: Positive = 6.0  # nats per completion
    horizon: Count = 10_000  # completions after which a KL that is 20 % off has moved the coefficient by about a fifth


class PpoConfig(PolicyGradient):
    """Proximal policy optimisation (arXiv 1707.06347) with a critic, as in InstructGPT (arXiv 2203.02155)."""

    type: Literal["ppo"]
    num_generations: Count = 1
    kl_coef: NonNegative = 0.05  # 0: no reference is loaded
    kl_placement: Literal["reward", "loss"] = "reward"
    kl_estimator: Literal["k1", "k2", "k3"] = "k1"  # k1 in the reward; k2 or k3 in the loss
    adaptive_kl: AdaptiveKl | None = None  # kl_coef is where it starts; None: it stays there
    cliprange: Positive = 0.2
    cliprange_value: Positive = 0.2
    gamma: Share = 1.0
    lam: Share = 0.95
    whiten_rewards: bool = False
    missing_eos_penalty: Positive | None = None
    num_ppo_epochs: Count = 4
    critic_learning_rate: Annotated[float, Field(gt=0, le=1)] = 1e-5

    @model_validator(mode="after")
    def estimator_fits_its_place(self) -> Self:
        if (self.kl_placement == "reward") != (self.kl_estimator == "k1"):
            raise ValueError(
                "kl_estimator is k1 with kl_placement reward, and k2 or k3 with kl_placement loss: "
                "k1 in a loss has no gradient on average, k2 and k3 in a reward have the wrong one"
            )
        return self

    @model_validator(mode="after")
    def adaptive_coefficient(self) -> Self:
        if self.adaptive_kl is None:
            return self
        if not self.kl_coef:
            raise ValueError("adaptive_kl multiplies kl_coef, which would stay at 0: start above 0")
        if self.adaptive_kl.horizon < self.prompts_per_step * self.num_generations:
            raise ValueError(
                "adaptive_kl.horizon is a number of completions, at least those of one step "
                f"({self.prompts_per_step * self.num_generations})"
            )
        return self

    @property
    def epochs(self) -> int:
        return self.num_ppo_epochs

    @property
    def needs_reference(self) -> bool:
        return self.kl_coef > 0
