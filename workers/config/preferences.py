"""Settings of algorithms that learn from which of two completions is better."""

from __future__ import annotations

import math
from typing import Annotated, Literal

from pydantic import Field

from workers.config.base import Count, NonNegative, Positive
from workers.config.optimisation import FromDataset, Sampled


class DpoConfig(Sampled, FromDataset):
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
    num_iterations: Count = 1  # passes over each step's pairs
    reset_optimizer: bool = False  # start every step (round) with fresh AdamW moments and a fresh schedule

    def num_updates(self, num_rows: int) -> int:
        return math.ceil(num_rows / self.batch_size)

    @property
    def epochs(self) -> int:
        return self.num_iterations

    @property
    def needs_reference(self) -> bool:
        return True
