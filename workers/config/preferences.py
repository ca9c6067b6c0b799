"""Settings of the methods that train on preferences: pairs, or completions labelled good or bad."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Annotated, ClassVar, Literal, TypeAlias

from pydantic import Field

from workers.config.base import Count, NonNegative, Positive, Share
from workers.config.method import FromDataset, Needs, Sampled
from workers.config.pairs import PairsConfig

PairLoss: TypeAlias = Literal["sigmoid", "hinge", "robust", "sigmoid_norm", "ipo", "simpo", "sppo"]
LOSS_ARGUMENTS: Mapping[PairLoss, tuple[str, ...]] = {
    # loss_type → arguments of DpoConfig that it takes; every loss takes `beta` and `sft_weight` as well
    "sigmoid": (
        "label_smoothing", "ld_alpha", "length_alpha", "dpop_lambda", "margin_weight", "exploration_alpha",
        "soft_labels", "label_temperature",
    ),
    "hinge": ("ld_alpha", "length_alpha", "margin_weight", "soft_labels", "label_temperature"),
    "robust": ("label_smoothing", "ld_alpha", "length_alpha", "dpop_lambda", "margin_weight"),
    "sigmoid_norm": ("label_smoothing", "ld_alpha", "margin_weight", "soft_labels", "label_temperature"),
    "ipo": ("ld_alpha", "soft_labels", "label_temperature"),
    "simpo": ("label_smoothing", "simpo_gamma", "margin_weight", "soft_labels", "label_temperature"),
    "sppo": ("soft_labels", "label_temperature"),
}  # fmt: skip


class DpoConfig(Sampled, FromDataset):
    """Direct preference optimisation (arXiv 2305.18290): offline on `data.dataset`, or on samples of `data.prompts`.

    With prompts, every step samples `num_generations` completions for each of `prompts_per_step` prompts, scores them
    and makes pairs. With few prompts per step this is online DPO. With a large pool of prompts per step, which is
    called a round, it is iterative DPO.
    """

    needs: ClassVar[Needs] = Needs(
        row="pair", prompts=True, dataset="pairs", reference=True, whole_rows=True, rounds=True
    )
    implementation: ClassVar[str] = "workers.algorithms.dpo"

    type: Literal["dpo"]  # DPO and its variants
    beta: Positive = 0.1  # coefficient of the log-ratio to the reference: strength of the implicit KL constraint
    # loss of a pair; hinge: SLiC; robust: robust DPO; sigmoid_norm: DPO on length-normalised log-ratios; ipo: IPO;
    # simpo: SimPO, without a reference; sppo: SPPO, the square loss of each completion's win rate
    loss_type: PairLoss = "sigmoid"
    label_smoothing: Annotated[float, Field(ge=0, lt=0.5)] = 0.0  # share of preference labels assumed to be wrong
    # weight of the tokens beyond the length of the shorter completion (LD-DPO, arXiv 2409.06411); None: 1
    ld_alpha: Share | None = None
    length_alpha: NonNegative = 0.0  # penalty per token of a completion's length (R-DPO, arXiv 2403.19159)
    # weight of the penalty where the chosen completion's probability falls below the reference's (DPO-positive, arXiv
    # 2402.13228)
    dpop_lambda: NonNegative = 0.0
    margin_weight: NonNegative = 0.0  # weight of the pair's score margin in the margin that the loss asks for
    simpo_gamma: NonNegative = 0.5  # target reward margin of SimPO (arXiv 2405.14734)
    # probability that the chosen completion is preferred, in place of 1; margin: by the Bradley–Terry model of the
    # pair's scores; votes: share of the rewards, by weight, that prefer it, or of the annotators in the column `votes`
    # of a dataset; win_rate: the score, of a pairwise reward (for sppo); hard: 1; None: votes where a row of a dataset
    # has them and the loss takes labels, else 1
    soft_labels: Literal["margin", "votes", "win_rate", "hard"] | None = None
    # score difference at which a completion is preferred with probability σ(1) = 0.73; for soft_labels margin
    label_temperature: Positive = 1.0
    # weight of log π of a pair's completions, which are samples of the reference: XPO's exploration bonus (arXiv
    # 2405.21046)
    exploration_alpha: NonNegative = 0.0
    # weight of the chosen completion's negative log-likelihood per token (RPO, arXiv 2404.19733)
    sft_weight: NonNegative = 0.0
    num_generations: Annotated[int, Field(ge=2)] = 8  # number of completions sampled per prompt: the size of a group
    pairs: PairsConfig = PairsConfig()  # preference pairs made from each group
    batch_size: Count = 64  # number of pairs per optimiser update
    num_iterations: Count = 1  # number of passes over each step's pairs
    # start every step (round) with a fresh optimiser state and a fresh learning-rate schedule
    reset_optimizer: bool = False

    def num_updates(self, num_rows: int) -> int:
        return math.ceil(num_rows / self.batch_size)

    @property
    def rows_per_step(self) -> int:
        return self.pairs.most_pairs(self.prompts_per_step, self.num_generations)

    @property
    def epochs(self) -> int:
        return self.num_iterations

    @property
    def resets_optimizer(self) -> bool:
        return self.reset_optimizer

    @property
    def needs_reference(self) -> bool:
        return self.loss_type != "simpo"

    @property
    def takes_soft_labels(self) -> bool:
        """Return True if the loss can be given labels other than 1 and 0."""
        return "soft_labels" in LOSS_ARGUMENTS[self.loss_type] and not self.dpop_lambda

    @property
    def keeps_groups(self) -> bool:
        return self.pairs.keep_groups

    @property
    def implicit_reward_beta(self) -> float:
        return self.beta


class KtoConfig(FromDataset):
    """Kahneman–Tversky optimisation (arXiv 2402.01306) on single completions that are labelled good or bad."""

    needs: ClassVar[Needs] = Needs(row="completion", dataset="labels", mismatched=True, reference=True, whole_rows=True)
    implementation: ClassVar[str] = "workers.algorithms.kto"

    type: Literal["kto"]  # KTO
    beta: Positive = 0.1  # coefficient of the log-ratio to the reference: strength of the implicit KL constraint
    desirable_weight: Positive = 1.0  # weight of the loss of desirable completions
    undesirable_weight: Positive = 1.0  # weight of the loss of undesirable completions
    # number of rows per update; at least 2, since each completion also serves the row before it for the KL estimate
    batch_size: Annotated[int, Field(ge=2)] = 64
