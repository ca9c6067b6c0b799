"""Settings of each role and of each algorithm: frozen pydantic, unknown keys forbidden, defaults that are vetted.

Names are TRL's wherever TRL has one. Every number carries its legal range, so that an illegal recipe cannot be written.
"""

from __future__ import annotations

import math
from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
NonNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Share = Annotated[float, Field(ge=0, le=1)]
Count = Annotated[int, Field(ge=1)]


class Settings(BaseModel):
    """Base of every settings class. Strict: a string is never taken for a number."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


# ------------------------------------------------------------------------------------------------ model


class ModelConfig(Settings):
    """The model that training starts from: a Hugging Face directory or hub id, or the result of an earlier stage."""

    path: str | None = None
    from_stage: str | None = None  # name of an earlier stage of the same recipe
    dtype: Literal["float32", "bfloat16"] = "bfloat16"
    trust_remote_code: Literal[False] = False
    chat_template_kwargs: dict[str, bool | int | float | str] = {}

    @model_validator(mode="after")
    def one_origin(self) -> Self:
        if (self.path is None) == (self.from_stage is None):
            raise ValueError("give exactly one of model.path and model.from_stage")
        return self


# ------------------------------------------------------------------------------------------------ algorithms


class Optimisation(Settings):
    """AdamW and its schedule, common to every algorithm."""

    learning_rate: Annotated[float, Field(gt=0, le=1)] = 1e-6
    lr_scheduler_type: Literal["constant", "linear", "cosine"] = "constant"
    warmup_steps: NonNegative = 0  # a count of optimiser updates, or a fraction of all when below 1
    weight_decay: NonNegative = 0.0
    adam_beta1: Annotated[float, Field(ge=0, lt=1)] = 0.9
    adam_beta2: Annotated[float, Field(ge=0, lt=1)] = 0.999
    adam_epsilon: Positive = 1e-8
    max_grad_norm: Positive = 1.0
    max_steps: Count | None = None  # turns of the loop; for iterative DPO: rounds


class SftConfig(Optimisation):
    """Supervised fine-tuning on the completions of a dataset."""

    type: Literal["sft"]
    learning_rate: Annotated[float, Field(gt=0, le=1)] = 2e-5
    batch_size: Count = 32  # examples per step
    num_train_epochs: Count = 1  # ignored when max_steps is given

    def num_updates(self, num_rows: int) -> int:
        return 1 if num_rows else 0

    @property
    def epochs(self) -> int:
        return 1


class _Generated(Optimisation):
    """What algorithms that may learn from their own samples have in common."""

    prompts_per_step: Count = 64
    num_generations: Count = 8  # completions per prompt: the group


class GrpoConfig(_Generated):
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


class PpoConfig(_Generated):
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


class DpoConfig(_Generated):
    """Direct preference optimisation (arXiv 2305.18290): offline on `data.dataset`, or on samples of `data.prompts`.

    With prompts, every step samples `num_generations` completions for each of `prompts_per_step` prompts, scores them
    and makes pairs. Small steps are online DPO; a step that is a whole pool of prompts is a round of iterative DPO.
    """

    type: Literal["dpo"]
    beta: Positive = 0.1
    loss_type: Literal["sigmoid"] = "sigmoid"
    label_smoothing: Annotated[float, Field(ge=0, lt=0.5)] = 0.0
    sft_weight: NonNegative = 0.0  # weight of the chosen completion's NLL per token (RPO, arXiv 2404.19733)
    num_generations: Annotated[int, Field(ge=2)] = 8
    pairs_per_prompt: Count = 1
    min_margin: NonNegative = 0.0  # a pair's scores must differ by more than this
    batch_size: Count = 64  # pairs per optimiser update
    num_train_epochs: Count = 1  # passes over each step's pairs; offline: over the dataset
    reset_optimizer: bool = False  # start every step (round) with fresh AdamW moments and a fresh schedule

    def num_updates(self, num_rows: int) -> int:
        return math.ceil(num_rows / self.batch_size)

    @property
    def epochs(self) -> int:
        return self.num_train_epochs


AlgorithmConfig = Annotated[SftConfig | GrpoConfig | PpoConfig | DpoConfig, Field(discriminator="type")]


# ------------------------------------------------------------------------------------------------ rewards


class FunctionRewardConfig(Settings):
    """A Python function with TRL's signature: `reward(prompts, completions, completion_ids, **columns)`."""

    type: Literal["function"]
    function: str  # path/to/file.py:name, or package.module:name
    weight: float = 1.0


class MathRewardConfig(Settings):
    """1 when the completion's final answer equals the `solution` column as mathematics, else 0 (math-verify)."""

    type: Literal["math"]
    weight: float = 1.0
    solution_column: str = "solution"


RewardConfig = Annotated[FunctionRewardConfig | MathRewardConfig, Field(discriminator="type")]


# ------------------------------------------------------------------------------------------------ roles


class RolloutConfig(Settings):
    """vLLM engines and how they sample."""

    num_engines: Count = 1
    tensor_parallel_size: Count = 1
    temperature: Positive = 1.0
    top_p: Annotated[float, Field(gt=0, le=1)] = 1.0
    top_k: Annotated[int, Field(ge=0)] = 0
    max_prompt_length: Count = 512
    max_completion_length: Count = 512
    ignore_eos: bool = False  # every completion runs to max_completion_length: for benchmarks
    gpu_memory_utilization: Annotated[float, Field(gt=0, lt=1)] = 0.9
    cpu_kv_cache_mib: Count = 64  # on CPU engines only
    max_num_seqs: Count = 256


class LearnerConfig(Settings):
    """DeepSpeed ranks that hold and train one model (policy or critic)."""

    num_ranks: Count = 1
    zero_stage: Literal[0, 1, 2, 3] = 3
    tokens_per_micro_batch: Count = 8192
    gradient_checkpointing: bool = False
    offload_optimizer: bool = False
    param_persistence_threshold: Annotated[int, Field(ge=0)] = 100_000  # ZeRO-3: smaller parameters stay whole
    logprob_chunk_tokens: Count = 2048  # rows of logits that exist at a time


class ReferenceConfig(Settings):
    """The frozen policy that anchors KL and DPO, and when it is replaced by the current policy."""

    num_ranks: Count = 1
    zero_stage: Literal[0, 3] = 0  # 0: each rank holds the model and scores its share
    tokens_per_micro_batch: Count = 16384
    refresh: Literal["never", "every_round", "when_drifted"] = "never"
    max_kl: Positive = 1.0  # when_drifted: refresh above this mean KL (nats per completion) of policy to reference


class RewardWorkersConfig(Settings):
    """How many processes score completions."""

    num_workers: Count = 1
    timeout_s: Positive = 300.0
