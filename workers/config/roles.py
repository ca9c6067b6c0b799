"""Settings of the model and of each role."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from workers.config.base import Count, ModelOrigin, Moment, Positive, Settings


class LoraConfig(Settings):
    """Low-rank adapters in a frozen model (arXiv 2106.09685); names are peft's."""

    r: Annotated[int, Field(ge=1, le=512)] = 16
    lora_alpha: Count = 32  # the update is scaled by lora_alpha / r
    lora_dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    target_modules: Literal["all-linear"] | tuple[str, ...] = "all-linear"  # as `q_proj`; no output layer, no experts

    @model_validator(mode="after")
    def some_targets(self) -> Self:
        if not self.target_modules:
            raise ValueError("model.lora.target_modules is empty: name a linear layer, or write all-linear")
        return self


class ModelConfig(ModelOrigin):
    """The model that training starts from."""

    dtype: Literal["float32", "bfloat16"] = "bfloat16"
    trust_remote_code: Literal[False] = False
    lora: LoraConfig | None = None  # None: all weights are trained
    chat_template_kwargs: dict[str, bool | int | float | str] = Field(default_factory=dict)
    template_date: Moment | None = None  # what templates that ask are told; None: when the run began, also in a resume


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
    cache: bool = True  # keep the log-probabilities of a dataset's rows for its later epochs
    max_kl: Positive = 1.0  # when_drifted: refresh above this mean KL (nats per completion) of policy to reference


class RewardWorkersConfig(Settings):
    """How many processes score completions."""

    num_workers: Count = 1
    skip_special_tokens: bool = True  # false: rewards see them (as a `<think>` that is one), but for a completion's end


class TeacherConfig(Settings):
    """The model that a distilled policy learns from. It shares the policy's tokenizer and never changes."""

    model: ModelConfig
    num_ranks: Count = 1
    zero_stage: Literal[0, 3] = 0  # 0: each rank holds the model and scores its share
    tokens_per_micro_batch: Count = 16384
