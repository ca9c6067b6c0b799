"""What the settings of algorithms are made of. Names and defaults are TRL's wherever TRL has one."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from workers.config.base import Count, NonNegative, Positive, Settings


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

    @property
    def epochs(self) -> int:
        """Passes over the rows of a step."""
        return 1

    def num_updates(self, num_rows: int) -> int:
        """Optimiser updates of one pass over a step that has `num_rows` rows."""
        return min(1, num_rows)

    @property
    def needs_reference(self) -> bool:
        """Whether a reference is loaded: only where its log-probabilities weigh something."""
        return False

    @property
    def needs_old_logprobs(self) -> bool:
        """Whether the policy computes the samples' log-probabilities itself before it learns from them."""
        return False


class FromDataset(Optimisation):
    """What algorithms that may learn from a dataset have in common."""

    batch_size: Count = 32  # rows per step
    num_train_epochs: Count = 1  # passes over the dataset; ignored when max_steps is given


class Sampled(Optimisation):
    """What algorithms that may learn from their own samples have in common."""

    prompts_per_step: Count = 64
    num_generations: Count = 8  # completions per prompt: the group
