"""Settings of the model and of the roles."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from workers.config.base import Count, IsoTime, ModelOrigin, PathText, Positive, Settings


class LoraConfig(Settings):
    """Low-rank adapters in a frozen model (LoRA, arXiv 2106.09685). Names are peft's."""

    r: Annotated[int, Field(ge=1, le=512)] = 16  # rank of the adapters
    lora_alpha: Count = 32  # scale of the adapters: their output is multiplied by lora_alpha / r
    lora_dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0  # dropout probability of the adapters' input
    # names of the linear layers that get adapters, for example `q_proj`; all-linear: all but the output layer and the
    # experts of a mixture
    target_modules: Literal["all-linear"] | tuple[str, ...] = "all-linear"

    @model_validator(mode="after")
    def some_targets(self) -> Self:
        if not self.target_modules:
            raise ValueError("model.lora.target_modules is empty: name a linear layer, or write all-linear")
        return self


class ModelConfig(ModelOrigin):
    """Model that training starts from."""

    dtype: Literal["float32", "bfloat16"] = "bfloat16"  # data type that weights are loaded and computed in
    trust_remote_code: Literal[False] = False  # always false: code from a model's repository is never executed
    lora: LoraConfig | None = None  # adapters to train in place of the weights; None: all weights are trained
    # keyword arguments passed to the chat template, for example `{enable_thinking: false}`
    chat_template_kwargs: dict[str, bool | int | float | str] = Field(default_factory=dict)
    # date or time given to chat templates that ask for the current one; None: the start of the run's first attempt
    template_date: IsoTime | None = None


class RolloutConfig(Settings):
    """vLLM engines, and the parameters of sampling."""

    num_engines: Count = 1  # number of vLLM engines
    tensor_parallel_size: Count = 1  # number of GPUs that each engine's model is split over
    temperature: Positive = 1.0  # sampling temperature
    top_p: Annotated[float, Field(gt=0, le=1)] = 1.0  # probability mass of nucleus sampling; 1: the whole vocabulary
    top_k: Annotated[int, Field(ge=0)] = 0  # number of most probable tokens sampled from; 0: the whole vocabulary
    max_prompt_length: Count = 512  # maximum length of a prompt in tokens; longer prompts are dropped and counted
    max_completion_length: Count = 512  # maximum length of a completion in tokens
    ignore_eos: bool = False  # sample every completion to max_completion_length; for benchmarks
    gpu_memory_utilization: Annotated[float, Field(gt=0, lt=1)] = 0.9  # share of a GPU's memory that an engine may use
    cpu_kv_cache_mib: Count = 64  # size of an engine's KV cache in MiB, on CPU
    max_num_seqs: Count = 256  # maximum number of sequences that an engine generates at the same time
    # number of tokens, of prompts and completions at their maximum lengths, that an engine samples in one call: the
    # prompts of a step are cut into chunks; a chunk is scored while the next one is sampled
    tokens_per_chunk: Count = 4_194_304


class LearnerConfig(Settings):
    """DeepSpeed ranks that hold and train one model: the policy or the critic."""

    num_ranks: Count = 1  # number of ranks, with one GPU each
    # DeepSpeed ZeRO stage: what is partitioned over the ranks; 0: nothing; 1: optimizer state; 2: gradients as well; 3:
    # weights as well
    zero_stage: Literal[0, 1, 2, 3] = 3
    # maximum number of tokens in a micro-batch on one rank; a row that cannot be split may exceed it
    tokens_per_micro_batch: Count = 8192
    gradient_checkpointing: bool = False  # recompute activations in the backward pass to save memory
    # keep the optimizer state in CPU memory, where cluster.cpus_per_worker cores of each rank compute the updates; for
    # zero_stage 1 to 3
    offload_optimizer: bool = False
    # number of elements below which a parameter is not partitioned; for zero_stage 3
    param_persistence_threshold: Annotated[int, Field(ge=0)] = 100_000
    logprob_chunk_tokens: Count = 2048  # number of tokens whose logits are computed at a time


class ReferenceConfig(Settings):
    """Frozen reference policy of KL and DPO, and when it is refreshed: replaced by the current policy, or by an average
    with it."""

    # model that is the reference at first, with the policy's tokenizer: a Hugging Face directory or Hub id; None: the
    # model that the run starts from
    path: PathText | None = None
    num_ranks: Count = 1  # number of ranks, with one GPU each
    # 0: every rank holds the whole model; 3: the weights are partitioned over the ranks (DeepSpeed ZeRO-3)
    zero_stage: Literal[0, 3] = 0
    tokens_per_micro_batch: Count = 16384  # maximum number of tokens in a micro-batch on one rank
    # when the reference is refreshed: never, before every step (round) of DPO on its own samples, or before those steps
    # at which the KL exceeds max_kl; ema: before every round, by the moving average (1 − ema_alpha)·reference +
    # ema_alpha·policy of the weights (TR-DPO, arXiv 2404.09656)
    refresh: Literal["never", "every_round", "when_drifted", "ema"] = "never"
    ema_alpha: Annotated[float, Field(gt=0, lt=1)] = 0.6  # weight of the policy in the moving average; for ema
    cache: bool = True  # compute the log-probabilities of a dataset's rows once and reuse them in later epochs
    # KL of policy to reference, in nats per completion, above which the reference is refreshed; for when_drifted. This
    # limit and the next two count as exceeded if the lower bound of the KL's 95 % confidence interval exceeds them
    max_kl: Positive = 1.0
    # KL before a round above which the round before it is taken back: the run returns to the checkpoint before that
    # round and repeats it once with other prompts; None: never
    roll_back_kl: Positive | None = None
    abort_kl: Positive | None = None  # KL before a round above which the run ends; None: never


class RewardWorkersConfig(Settings):
    """Processes that score completions."""

    num_workers: Count = 1  # number of processes
    # leave special tokens out of the text that rewards read; false: keep them (for example `<think>`), except the token
    # that ends a completion
    skip_special_tokens: bool = True


class TeacherConfig(Settings):
    """Frozen model that the policy is distilled from. It has the policy's tokenizer."""

    model: ModelConfig  # teacher model
    num_ranks: Count = 1  # number of ranks, with one GPU each
    # 0: every rank holds the whole model; 3: the weights are partitioned over the ranks (DeepSpeed ZeRO-3)
    zero_stage: Literal[0, 3] = 0
    tokens_per_micro_batch: Count = 16384  # maximum number of tokens in a micro-batch on one rank
