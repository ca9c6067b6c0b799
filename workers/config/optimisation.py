"""Settings of AdamW and its learning-rate schedule, common to every method."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from workers.config.base import Count, NonNegative, Positive, Settings


class Optimisation(Settings):
    """AdamW and its learning-rate schedule. Names and defaults are TRL's wherever TRL has one."""

    learning_rate: Annotated[float, Field(gt=0, le=1)] = 1e-6  # peak learning rate
    lr_scheduler_type: Literal["constant", "linear", "cosine"] = "constant"  # learning-rate schedule after the warm-up
    warmup_steps: NonNegative = 0  # length of the warm-up in optimiser updates, or as a share of all updates if below 1
    weight_decay: NonNegative = 0.0  # decoupled weight decay of AdamW
    adam_beta1: Annotated[float, Field(ge=0, lt=1)] = 0.9  # decay rate of AdamW's first moment
    adam_beta2: Annotated[float, Field(ge=0, lt=1)] = 0.999  # decay rate of AdamW's second moment
    adam_epsilon: Positive = 1e-8  # term added to AdamW's denominator for numerical stability
    max_grad_norm: Positive = 1.0  # L2 norm that the gradient of an update is clipped to
    # number of steps of the run (of rounds in iterative DPO); None: as many as num_train_epochs over the dataset take
    max_steps: Count | None = None
