"""Settings of the methods that train on demonstrations, and of reward models."""

from __future__ import annotations

import math
from typing import Annotated, ClassVar, Literal, Self

from pydantic import AfterValidator, Field, model_validator

from workers.config.base import Count, NonNegative, Objective
from workers.config.method import FromDataset, Needs, Sampled


def _check_distinct(names: tuple[str, ...]) -> tuple[str, ...]:
    if len(set(names)) < len(names):
        raise ValueError("name each objective once: it has one score")
    return names


class SftConfig(FromDataset):
    """Supervised fine-tuning on the completions of a dataset (of `messages` rows the last turn), or on all tokens."""

    needs: ClassVar[Needs] = Needs(row="completion", dataset="demonstrations")
    implementation: ClassVar[str] = "workers.algorithms.sft"

    type: Literal["sft"]  # supervised fine-tuning
    # train on the completion's tokens only; false: on the prompt's tokens as well; of `text` rows all tokens are
    # trained on
    completion_only_loss: bool = True
    learning_rate: Annotated[float, Field(gt=0, le=1)] = 2e-5  # peak learning rate

    @property
    def trains_on_prompts(self) -> bool:
        return not self.completion_only_loss


class RewardModelConfig(FromDataset):
    """Reward model trained on preferences (Bradley–Terry): it gives the chosen text of a pair the greater score."""

    needs: ClassVar[Needs] = Needs(row="pair", dataset="pairs", head="scores", whole_rows=True)
    implementation: ClassVar[str] = "workers.algorithms.reward_model"

    type: Literal["reward_model"]  # reward model
    batch_size: Count = 64  # number of pairs per step
    learning_rate: Annotated[float, Field(gt=0, le=1)] = 1e-5  # peak learning rate
    # weight of (r_chosen + r_rejected)², which centres the scores on 0 (arXiv 2312.09244); 0.01 is usual
    center_rewards_coefficient: NonNegative = 0.0
    # weight of the row's `margin` (1 where it has none) as the score difference asked for (arXiv 2307.09288)
    margin_weight: NonNegative = 0.0
    # probability that the chosen completion is preferred; votes: share of the annotators in the column `votes`, 1 for a
    # row without it; hard: 1
    soft_labels: Literal["votes", "hard"] = "votes"
    # objectives of the sources that have a score layer of their own, on which their pairs are trained; the names are
    # the labels of the model that is written. Empty: one score for all pairs
    objectives: Annotated[tuple[Objective, ...], AfterValidator(_check_distinct)] = ()

    @property
    def labels(self) -> tuple[str, ...]:
        return self.objectives


class RejectionSamplingConfig(Sampled):
    """Fine-tuning on the best of the policy's own samples (RAFT, arXiv 2304.06767; RFT, arXiv 2308.01825)."""

    needs: ClassVar[Needs] = Needs(row="completion", prompts=True)
    implementation: ClassVar[str] = "workers.algorithms.rejection_sampling"

    type: Literal["rejection_sampling"]  # rejection sampling
    learning_rate: Annotated[float, Field(gt=0, le=1)] = 2e-5  # peak learning rate
    keep_best: Count = 1  # number of completions kept of each prompt, at most
    # smallest reward of a completion that is kept; None: no threshold
    min_reward: Annotated[float, Field(allow_inf_nan=False)] | None = None
    distinct: bool = True  # keep equal completions of a prompt once only
    batch_size: Count = 32  # number of kept completions per optimiser update
    num_iterations: Count = 1  # number of passes over the completions kept in each step

    @model_validator(mode="after")
    def no_more_than_there_are(self) -> Self:
        if self.keep_best > self.num_generations:
            raise ValueError("keep_best of the num_generations completions are kept: set it to at most num_generations")
        return self

    def num_updates(self, num_rows: int) -> int:
        return math.ceil(num_rows / self.batch_size)

    @property
    def rows_per_step(self) -> int:
        return self.prompts_per_step * self.keep_best

    @property
    def epochs(self) -> int:
        return self.num_iterations
