"""Settings of algorithms that learn from which completions are better, or good."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Annotated, Literal, TypeAlias

from pydantic import Field

from workers.config.base import Count, NonNegative, Positive, Share
from workers.config.optimisation import FromDataset, Sampled

PairLoss: TypeAlias = Literal["sigmoid", "hinge", "robust", "sigmoid_norm", "ipo", "simpo"]
LOSS_ARGUMENTS: Mapping[PairLoss, tuple[str, ...]] = {
    # which of DpoConfig's arguments each loss knows what to do with; `beta` and `sft_weight` go with all
    "sigmoid": ("label_smoothing", "ld_alpha", "length_alpha", "dpop_lambda", "margin_weight"),
    "hinge": ("ld_alpha", "length_alpha", "margin_weight"),
    "robust": ("label_smoothing", "ld_alpha", "length_alpha", "dpop_lambda", "margin_weight"),
    "sigmoid_norm": ("label_smoothing", "ld_alpha", "margin_weight"),
    "ipo": ("ld_alpha",),
    "simpo": ("label_smoothing", "simpo_gamma", "margin_weight"),
}


class DpoConfig(Sampled, FromDataset):
    """Direct preference optimisation (arXiv 2305.18290): offline on `data.dataset`, or on samples of `data.prompts`.

    With prompts, every step samples `num_generations` completions for each of `prompts_per_step` prompts, scores them
    and makes pairs. Small steps are online DPO; a step that is a whole pool of prompts is a round of iterative DPO.
    """

    type: Literal["dpo"]
    beta: Positive = 0.1
    loss_type: PairLoss = "sigmoid"
    label_smoothing: Annotated[float, Field(ge=0, lt=0.5)] = 0.0  # share of labels taken to be wrong
    ld_alpha: Share | None = None  # weight of tokens beyond the length that both completions have; None: 1
    length_alpha: NonNegative = 0.0  # reward that a token of length costs (R-DPO)
    dpop_lambda: NonNegative = 0.0  # weight of the chosen completion's fall below the reference (DPO-positive)
    margin_weight: NonNegative = 0.0  # how much of the scores' margin the pair must show
    simpo_gamma: NonNegative = 0.5  # simpo alone: the margin that is asked for
    sft_weight: NonNegative = 0.0  # weight of the chosen completion's NLL per token (RPO, arXiv 2404.19733)
    num_generations: Annotated[int, Field(ge=2)] = 8
    pair_selection: Literal["best_worst", "all", "random"] = "best_worst"  # see workers/algorithms/pairs.py
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
        return self.loss_type != "simpo"


class KtoConfig(FromDataset):
    """Kahneman–Tversky optimisation (arXiv 2402.01306) on single completions that are labelled good or bad."""

    type: Literal["kto"]
    beta: Positive = 0.1
    desirable_weight: Positive = 1.0
    undesirable_weight: Positive = 1.0
    batch_size: Annotated[int, Field(ge=2)] = 64  # rows per update; each lends its completion to the row before

    @property
    def needs_reference(self) -> bool:
        return True
