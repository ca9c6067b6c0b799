"""Settings of the methods that follow the gradient of a reward on their own samples."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal, Self

from pydantic import Field, model_validator

from workers.config.base import Count, NonNegative, Positive, Settings, Share
from workers.config.method import Head, Needs, Sampled


class PolicyGradient(Sampled):
    """Settings shared by the policy-gradient methods.

    With `vllm_importance_sampling_correction` the old log-probabilities are the learner's own, and each token's loss is
    weighted by the ratio of its probability under the learner to that under the engine, of the token or of its whole
    completion. A ratio above the cap is reduced to the cap (truncate) or to 0 (mask).
    """

    num_mini_batches: Count = 1  # number of optimiser updates per pass over a step's batch
    # truncated importance sampling: weight the loss for the mismatch between inference engine and learner
    vllm_importance_sampling_correction: bool = False
    # level of the importance ratio (token or whole completion), and treatment of ratios above the cap: truncate reduces
    # them to the cap, mask to 0
    vllm_importance_sampling_mode: Literal["token_truncate", "token_mask", "sequence_truncate", "sequence_mask"] = (
        "sequence_mask"
    )
    vllm_importance_sampling_clip_max: Positive = 3.0  # cap on the importance ratio

    def num_updates(self, num_rows: int) -> int:
        return min(self.num_mini_batches, num_rows)

    @property
    def mini_batches(self) -> int:
        return self.num_mini_batches

    @property
    def needs_old_logprobs(self) -> bool:
        return self.vllm_importance_sampling_correction


class GrpoConfig(PolicyGradient):
    """Group-relative policy optimisation (GRPO, arXiv 2402.03300), and its variants as settings."""

    needs: ClassVar[Needs] = Needs(row="group", prompts=True, reference=True, on_policy=True)
    implementation: ClassVar[str] = "workers.algorithms.grpo"

    type: Literal["grpo"]  # GRPO: advantages relative to the group's mean reward
    num_generations: Annotated[int, Field(ge=2)] = 8  # number of completions sampled per prompt: the size of a group
    beta: NonNegative = 0.0  # coefficient of the KL to the reference; 0: no reference is loaded
    kl_placement: Literal["loss", "reward"] = "loss"  # where the KL enters: as a term of the loss, or in the reward
    # multiply the k3 estimate in the loss by the probability ratio, which gives it the gradient of the reverse KL
    # (arXiv 2512.02556); TRL's default is true
    use_bias_correction_kl: bool = False
    epsilon: Positive = 0.2  # clip range of the probability ratio: 1 − epsilon is the lower bound
    # clip range above 1; None: equal to epsilon; with loss_type cispo: upper bound of the weight itself
    epsilon_high: Positive | None = None
    # upper bound of the probability ratio where the advantage is negative (arXiv 2505.07291); None: unbounded
    delta: Positive | None = None
    # level of the probability ratio: of each token, or the geometric mean over a completion (GSPO)
    importance_sampling_level: Literal["token", "sequence"] = "token"
    # divisor of the advantages: standard deviation of the group's rewards, of the whole step's rewards, or none
    scale_rewards: Literal["group", "batch", "none"] = "group"
    # aggregation of the loss; dapo: mean over tokens; grpo: mean over completions of each one's mean; dr_grpo: sums
    # divided by fixed_length; cispo: mean over tokens of the CISPO loss
    loss_type: Literal["dapo", "grpo", "dr_grpo", "cispo"] = "dapo"
    # number of tokens that each completion's summed loss is divided by; required by loss_type dr_grpo, None otherwise
    fixed_length: Count | None = None
    num_iterations: Count = 1  # number of passes over each step's batch
    mask_truncated_completions: bool = False  # leave completions without an end of sequence out of the loss
    # number of tokens before overlong_length over which the penalty for length rises from 0 to 1 (DAPO); None: no
    # penalty
    overlong_buffer: Count | None = None
    overlong_length: Count | None = None  # length in tokens from which the penalty for length is 1; None: no penalty
    # leave out groups whose rewards are all equal, and sample further prompts in their place (DAPO dynamic sampling)
    dynamic_sampling: bool = False
    max_resamples: Count = 4  # number of times that a step samples further prompts, at most; for dynamic_sampling

    @model_validator(mode="after")
    def length_of_dr_grpo(self) -> Self:
        if (self.loss_type == "dr_grpo") != (self.fixed_length is not None):
            raise ValueError(
                "fixed_length goes with loss_type dr_grpo, which requires it: its usual value is "
                "rollout.max_completion_length"
            )
        return self

    @model_validator(mode="after")
    def bounds_of_the_ratio(self) -> Self:
        if self.loss_type == "cispo" and (self.epsilon_high is None or self.delta is not None):
            raise ValueError(
                "loss_type cispo has one bound, that of the weight: set epsilon_high (usually 5.0), and leave delta out"
            )
        if self.delta is not None and self.delta <= 1 + (self.epsilon_high or self.epsilon):
            raise ValueError(
                "delta bounds the ratio itself: set it above 1 + epsilon_high (1 + epsilon without epsilon_high)"
            )
        return self

    @model_validator(mode="after")
    def overlong_pair(self) -> Self:
        if (self.overlong_buffer is None) != (self.overlong_length is None):
            raise ValueError(
                "set both overlong_buffer and overlong_length, or neither: the usual overlong_length is "
                "rollout.max_completion_length"
            )
        if self.overlong_buffer and self.overlong_length and self.overlong_buffer > self.overlong_length:
            raise ValueError("overlong_buffer is the last part of overlong_length: set it to at most overlong_length")
        return self

    @property
    def epochs(self) -> int:
        return self.num_iterations

    @property
    def needs_reference(self) -> bool:
        return self.beta > 0

    @property
    def resamples(self) -> int:
        return self.max_resamples if self.dynamic_sampling else 0


class RlooConfig(PolicyGradient):
    """REINFORCE leave-one-out (arXiv 2402.14740): the baseline is the mean reward of the group's other completions."""

    needs: ClassVar[Needs] = Needs(row="group", prompts=True, reference=True, on_policy=True)
    implementation: ClassVar[str] = "workers.algorithms.rloo"

    type: Literal["rloo"]  # RLOO: REINFORCE with the leave-one-out baseline
    num_generations: Annotated[int, Field(ge=2)] = 2  # number of completions sampled per prompt: the size of a group
    beta: NonNegative = 0.05  # coefficient of the KL in the reward; 0: no reference is loaded
    epsilon: Positive = 0.2  # clip range of the probability ratio of a completion: 1 − epsilon is the lower bound
    epsilon_high: Positive | None = None  # clip range above 1; None: equal to epsilon
    normalize_advantages: bool = False  # normalise the advantages to mean 0 and standard deviation 1 over the step
    num_iterations: Count = 1  # number of passes over each step's batch
    # treatment of importance ratios above the cap: truncate reduces them to the cap, mask to 0
    vllm_importance_sampling_mode: Literal["sequence_truncate", "sequence_mask"] = "sequence_mask"

    @property
    def epochs(self) -> int:
        return self.num_iterations

    @property
    def needs_reference(self) -> bool:
        return self.beta > 0


class ReinforceConfig(PolicyGradient):
    """REINFORCE++ (arXiv 2501.03262): PPO's clipped objective without a critic."""

    needs: ClassVar[Needs] = Needs(row="group", prompts=True, reference=True, on_policy=True)
    implementation: ClassVar[str] = "workers.algorithms.reinforce"

    type: Literal["reinforce++"]  # REINFORCE++: advantages normalised over the whole step
    num_generations: Count = 8  # number of completions sampled per prompt; 1 is enough without a group baseline
    baseline: Literal["none", "group"] = "none"  # baseline subtracted from the score: none, or the mean of its group
    beta: NonNegative = 0.05  # coefficient of each token's KL in the reward; 0: no reference is loaded
    gamma: Share = 1.0  # discount factor of the return, per token
    epsilon: Positive = 0.2  # clip range of the probability ratio: 1 − epsilon is the lower bound
    epsilon_high: Positive | None = None  # clip range above 1; None: equal to epsilon
    num_iterations: Count = 1  # number of passes over each step's batch

    @model_validator(mode="after")
    def group_of_the_baseline(self) -> Self:
        if self.baseline == "group" and self.num_generations < 2:
            raise ValueError("baseline group needs num_generations of 2 or more: a single completion is its own mean")
        return self

    @property
    def epochs(self) -> int:
        return self.num_iterations

    @property
    def needs_reference(self) -> bool:
        return self.beta > 0


class AdaptiveKl(Settings):
    """Controller of the KL coefficient that holds the KL near a target (arXiv 1909.08593, section 2.2)."""

    target: Positive = 6.0  # target of the mean KL to the reference, in nats per completion
    # number of completions after which a KL that is 20 % off target has changed the coefficient by about 20 %
    horizon: Count = 10_000


class PpoConfig(PolicyGradient):
    """Proximal policy optimisation (arXiv 1707.06347) with a critic, as in InstructGPT (arXiv 2203.02155)."""

    needs: ClassVar[Needs] = Needs(row="completion", prompts=True, reference=True, critic=True, on_policy=True)
    implementation: ClassVar[str] = "workers.algorithms.ppo"

    type: Literal["ppo"]  # PPO with a critic
    num_generations: Count = 1  # number of completions sampled per prompt
    kl_coef: NonNegative = 0.05  # coefficient of the KL to the reference; 0: no reference is loaded
    kl_placement: Literal["reward", "loss"] = "reward"  # where the KL enters: in each token's reward, or in the loss
    kl_estimator: Literal["k1", "k2", "k3"] = "k1"  # estimator of the KL: k1 in the reward, k2 or k3 in the loss
    adaptive_kl: AdaptiveKl | None = None  # controller that adapts kl_coef after each step; None: kl_coef is constant
    cliprange: Positive = 0.2  # clip range of the probability ratio: it is kept within 1 ± cliprange
    cliprange_value: Positive = 0.2  # clip range of the critic: a value is kept within this distance of the old value
    gamma: Share = 1.0  # discount factor of generalised advantage estimation, per token
    lam: Share = 0.95  # λ of generalised advantage estimation: weight of longer returns
    whiten_rewards: bool = False  # scale the token rewards to variance 1 over the step, keeping their mean
    # amount subtracted from the score of a completion without an end of sequence; None: 0
    missing_eos_penalty: Positive | None = None
    num_ppo_epochs: Count = 4  # number of passes over each step's batch
    critic_learning_rate: Annotated[float, Field(gt=0, le=1)] = 1e-5  # peak learning rate of the critic

    @model_validator(mode="after")
    def estimator_fits_its_place(self) -> Self:
        if (self.kl_placement == "reward") != (self.kl_estimator == "k1"):
            raise ValueError(
                "kl_estimator is k1 with kl_placement reward, and k2 or k3 with kl_placement loss: "
                "the expected gradient of k1 in a loss is zero, and that of k2 and k3 in a reward is wrong"
            )
        return self

    @model_validator(mode="after")
    def adaptive_coefficient(self) -> Self:
        if self.adaptive_kl is None:
            return self
        if not self.kl_coef:
            raise ValueError("adaptive_kl multiplies kl_coef, which would stay at 0: set kl_coef above 0")
        if self.adaptive_kl.horizon < self.prompts_per_step * self.num_generations:
            raise ValueError(
                "adaptive_kl.horizon is a number of completions: set it to at least that of one step "
                f"({self.prompts_per_step * self.num_generations})"
            )
        return self

    @property
    def epochs(self) -> int:
        return self.num_ppo_epochs

    @property
    def needs_reference(self) -> bool:
        return self.kl_coef > 0

    def learning_rate_of(self, head: Head) -> float:
        return self.critic_learning_rate if head == "values" else self.learning_rate
