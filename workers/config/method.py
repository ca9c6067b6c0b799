"""Base of every method's settings: what the method needs, how much work a step of it is, where it is implemented."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal, TypeAlias, get_args

from workers.config.base import Count
from workers.config.optimisation import Optimisation

Head: TypeAlias = Literal["logprobs", "values", "scores"]
"""Output of a model for each token: its log-probability (policy), the value of the state before it (critic), or the
score of the text that ends with it (reward model)."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Needs:
    """Data and models that a method needs, and the shape of its training rows.

    Example: SFT trains on a dataset of demonstrations: `Needs(dataset="demonstrations", row="completion")`.
    """

    row: Literal["completion", "pair", "group"]  # completions of one training row: one, two, or a prompt's whole group
    prompts: bool = False  # it can train on its own samples of `data.prompts`
    # kind of rows in `data.dataset` that it can train on; None: it cannot train on a dataset
    dataset: Literal["demonstrations", "labels", "pairs"] | None = None
    mismatched: bool = False  # each dataset row comes with the completion of another row, for comparison
    reference: bool = False  # log-probabilities of a frozen reference enter its loss or its reward
    critic: bool = False  # a second model learns the values of states
    teacher: bool = False  # it trains on the token distributions of another model (`teacher.model`)
    head: Head = "logprobs"  # output of the model that is trained
    on_policy: bool = False  # its loss needs log-probabilities at the temperature of sampling
    whole_rows: bool = False  # no row is split over micro-batches: the loss is that of a row as a whole
    rounds: bool = False  # a step on its own samples is a round: long, and the reference may be refreshed after it
    trains: bool = True  # it trains a model; False: it writes its samples as a data set


class Method(Optimisation):
    """Base of the settings of all methods. A method overrides what differs from these defaults."""

    needs: ClassVar[Needs]
    implementation: ClassVar[str]  # module whose `ALGORITHM` is the record of `prepare` and `loss`; empty: none trains

    if TYPE_CHECKING:
        type: str  # each method narrows it to its own literal

    @classmethod
    def type_name(cls) -> str:
        """Return the `algorithm.type` that selects this method in a recipe."""
        name: str = get_args(cls.model_fields["type"].annotation)[0]
        return name

    @property
    def epochs(self) -> int:
        """Passes over the rows of a step."""
        return 1

    def num_updates(self, num_rows: int) -> int:
        """Return the number of optimiser updates in one pass over `num_rows` rows."""
        return min(1, num_rows)

    def learning_rate_of(self, head: Head) -> float:
        """Return the peak learning rate of the model with this head."""
        return self.learning_rate

    @property
    def resets_optimizer(self) -> bool:
        """Flag: every step starts with a fresh optimiser and a fresh learning-rate schedule."""
        return False

    @property
    def trains_on_prompts(self) -> bool:
        """Flag: the tokens of a dataset row's prompt are trained on like those of its completion."""
        return False

    # -------------------------------------------------------------------------------------------- other models

    @property
    def needs_reference(self) -> bool:
        """Flag: a reference is loaded, because its log-probabilities have weight under these settings."""
        return self.needs.reference

    @property
    def needs_old_logprobs(self) -> bool:
        """Flag: the learner computes the log-probabilities of the samples itself before it trains on them."""
        return False

    @property
    def keeps_groups(self) -> bool:
        """Flag: the scored groups of a round are kept, beside its pairs."""
        return False

    @property
    def implicit_reward_beta(self) -> float | None:
        """β of the implicit reward β log(π/π_ref), by which held-out pairs are judged. None: it has no such reward."""
        return None

    @property
    def labels(self) -> tuple[str, ...]:
        """Labels of a reward model with a score for each objective. Empty: it has one score."""
        return ()

    @property
    def teacher_samples(self) -> bool:
        """Flag: the rollout engines hold the teacher instead of the policy."""
        return False

    @property
    def divergence_beta(self) -> float | None:
        """β of the divergence between the policy's and the teacher's distributions over the whole vocabulary. None: the
        teacher's log-probabilities of single tokens are enough."""
        return None

    @property
    def needs_teacher_states(self) -> bool:
        """Flag: the teacher returns hidden states, which give its distribution over the vocabulary."""
        return self.divergence_beta is not None

    def loss_temperature(self, sampling: float) -> float:
        """Return the temperature of the log-probabilities in the loss, given that of sampling."""
        return sampling if self.needs.on_policy else 1.0


class FromDataset(Method):
    """Settings shared by the methods that can train on a dataset."""

    batch_size: Count = 32  # number of dataset rows per step
    num_train_epochs: Count = 1  # number of passes over the dataset; ignored where max_steps is given


class Sampled(Method):
    """Settings shared by the methods that can train on their own samples."""

    prompts_per_step: Count = 64  # number of prompts sampled per step
    num_generations: Count = 8  # number of completions sampled per prompt: the size of a group

    @property
    def rows_per_step(self) -> int:
        """Training rows of a step, at most."""
        return self.prompts_per_step * (self.num_generations if self.needs.row == "completion" else 1)

    @property
    def completions_per_row(self) -> int:
        """Completions of a training row, which share the tokens of its prompt."""
        return {"completion": 1, "pair": 2, "group": self.num_generations}[self.needs.row]

    @property
    def mini_batches(self) -> int:
        """Parts of equal size that the rows of a step are divided into, one optimiser update each."""
        return 1

    @property
    def resamples(self) -> int:
        """Times that a step samples further prompts for groups without a reward spread, at most. 0: never."""
        return 0
