"""Settings of the scorers."""

from __future__ import annotations

import re
from typing import Annotated, Literal, Self

from pydantic import AfterValidator, Field, model_validator

from workers.config.base import Count, IsoTime, ModelOrigin, PathText, Pattern, Positive, Settings, expand_home
from workers.config.endpoint import EndpointConfig

LARGEST = 3.4e38  # largest float32; rewards are float32
Weight = Annotated[float, Field(ge=-LARGEST, le=LARGEST)]
Memory = Annotated[int, Field(ge=64)]
DEFAULT_CLASSIFIER = "default"
"""Name in a recipe of the classifier of refusals that is shipped."""


class FunctionRewardConfig(Settings):
    """Python function with TRL's signature, `reward(prompts, completions, completion_ids, **columns)`. It runs in a
    process of its own, which is killed if it exceeds a limit."""

    type: Literal["function"]  # reward function written by the user
    # function to call, as path/to/file.py:name or package.module:name
    function: Annotated[str, AfterValidator(expand_home)]
    weight: Weight = 1.0  # weight of this reward in the sum of all rewards
    timeout_s: Positive = 300.0  # seconds that loading the function, or scoring one batch, may take
    memory_mib: Memory = 4096  # memory that the function's processes may use together, in MiB


class MathRewardConfig(Settings):
    """1 if the completion's final answer is mathematically equal to the `solution` column, else 0 (math-verify)."""

    type: Literal["math"]  # comparison of the final answer with the solution
    weight: Weight = 1.0  # weight of this reward in the sum of all rewards
    solution_column: str = "solution"  # name of the column with the solution


class ModelScorerConfig(ModelOrigin):
    """Model that scores completions, as a Hugging Face directory."""

    weight: Weight = 1.0  # weight of this reward in the sum of all rewards
    dtype: Literal["float32", "bfloat16"] = "bfloat16"  # data type that weights are loaded and computed in
    # maximum length of prompt and completion in tokens of the model; longer completions are truncated
    max_length: Count = 1024
    tokens_per_micro_batch: Count = 16384  # maximum number of tokens in a micro-batch


class ChatScorerConfig(ModelScorerConfig):
    """Model that scores conversations, which its own chat template renders."""

    # keyword arguments passed to the model's chat template
    chat_template_kwargs: dict[str, bool | int | float | str] = Field(default_factory=dict)
    # date or time given to chat templates that ask for the current one; None: the start of the run's first attempt
    template_date: IsoTime | None = None


class ModelRewardConfig(ChatScorerConfig):
    """Score of a reward model: a sequence-classification model with one label, as a Hugging Face directory, or one of
    the scores of a model with several."""

    type: Literal["model"]  # reward model
    # label whose score is taken, of a model with several labels; None: the model has one
    label: str | None = None


class ClassifierRewardConfig(ModelScorerConfig):
    """Probability of a label of a text-classification model, such as `toxic`, or `entailment` by a reference text. It
    reads the completion alone, or the pair of a column and the completion."""

    type: Literal["classifier"]  # text-classification model with two labels or more
    label: Annotated[str, Field(min_length=1)]  # label whose score is the reward, as the model's id2label spells it
    # what turns the model's outputs into scores, as in a pipeline of transformers: softmax over the labels, sigmoid of
    # each one, or none; None: sigmoid if the model's problem_type is multi_label_classification, else softmax
    function_to_apply: Literal["sigmoid", "softmax", "none"] | None = None
    # name of a column with text: the model reads (column, completion), as a premise and its hypothesis; None: it reads
    # the completion alone
    premise_column: str | None = None
    max_length: Count = 512  # maximum length of a text, or of a pair, in tokens of the model; longer ones are truncated

    @property
    def name(self) -> str:
        """Return the name in the metrics.

        >>> ClassifierRewardConfig(type="classifier", path="models/nli", label="Not entailed").name
        'not_entailed'
        """
        return re.sub(r"\W+", "_", self.label.lower()).strip("_") or "classifier"


RLHFLOW_TEMPLATE = "[CONTEXT] {context} [RESPONSE A] {response_a} [RESPONSE B] {response_b} \n"
"""Template of RLHFlow's pair-preference-model-LLaMA3-8B (arXiv 2405.07863)."""
PARTS_OF_TEMPLATE = ("{context}", "{response_a}", "{response_b}")


def _check_template(text: str) -> str:
    if wrong := [part for part in PARTS_OF_TEMPLATE if text.count(part) != 1]:
        raise ValueError(f"write {wrong[0]} exactly once: it is replaced by the text to compare")
    return text


def _check_scale(scale: tuple[int, int]) -> tuple[int, int]:
    if scale[0] >= scale[1]:
        raise ValueError("give the lowest grade first, such as [1, 10]")
    return scale


def _check_even(number: int) -> int:
    if number % 2:
        raise ValueError(f"give an even number, such as {number + 1}: half of the opponents on either side of a circle")
    return number


class PairwiseRewardConfig(ChatScorerConfig):
    """Mean probability that a completion wins against the other completions of its group, by a language model that
    compares two answers and names the better one. Each two are compared in both orders."""

    type: Literal["pairwise"]  # language model that compares two completions
    # maximum length of a comparison in tokens of the model; longer comparisons are left out
    max_length: Count = 4096
    # number of other completions of its group that each completion is compared with, an even number; None: all of them
    opponents: Annotated[int, Field(ge=2), AfterValidator(_check_even)] | None = None
    # text of a comparison, the content of the only message that the model is given
    template: Annotated[str, AfterValidator(_check_template)] = RLHFLOW_TEMPLATE
    # answers by which the model names the first or the second completion; each is one token
    choices: tuple[str, str] = ("A", "B")
    # begin with the BOS token of the chat template; false: without it, as RLHFlow's models are trained
    bos: bool = False

    def comparisons(self, group: int) -> int:
        """Return the number of comparisons of a group of completions, without repetition in the other order.

        >>> PairwiseRewardConfig(type="pairwise", path="judge", opponents=4).comparisons(8)
        16
        """
        opponents = group - 1 if self.opponents is None else min(self.opponents, group - 1)
        return group * opponents // 2


class JudgeRewardConfig(EndpointConfig):
    """Verdict of a language model at an OpenAI-compatible endpoint: a grade by a rubric, or a win rate."""

    type: Literal["judge"]  # language model at an endpoint
    weight: Weight = 1.0  # weight of this reward in the sum of all rewards
    # name of the judge in metrics, as in rewards/NAME/mean
    name: Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]{0,31}$")] = "judge"
    compare: bool = False  # compare the completions of a prompt with each other instead of grading each one
    # rubric of the grades, or criteria by which an answer is better; None: does what is asked, correct, no longer
    # than needed
    instructions: str | None = None
    scale: Annotated[tuple[int, int], AfterValidator(_check_scale)] = (1, 10)  # lowest and highest grade
    # number of other completions of its group that each completion is compared with, an even number; None: all of them
    opponents: Annotated[int, Field(ge=2), AfterValidator(_check_even)] | None = 2
    both_orders: bool = True  # show each pair twice, with the completions swapped, against position bias

    def questions(self, group: int) -> int:
        """Return the number of questions about a group of this size.

        >>> JudgeRewardConfig(type="judge", url="http://localhost/v1", model="m", compare=True).questions(8)
        16
        """
        if not self.compare:
            return group
        limit = group - 1 if self.opponents is None else min(self.opponents, group - 1)
        return (2 if self.both_orders else 1) * group * limit // 2


class CodeRewardConfig(Settings):
    """1 if the completion's Python program passes all tests of its row, else 0. Every test runs in a sandbox of its own
    (bubblewrap). Without bubblewrap the run is refused."""

    type: Literal["code"]  # tests of the program in a completion
    weight: Weight = 1.0  # weight of this reward in the sum of all rewards
    # name of the column with the tests: assertions, inputs and outputs, or test_cases
    tests_column: str = "tests"
    partial_credit: bool = False  # give the share of tests that pass instead of 0 or 1
    timeout_s: Positive = 10.0  # seconds of processor time that each test may take
    memory_mib: Memory = 512  # address space that each test may use, in MiB


class JsonSchemaRewardConfig(Settings):
    """1 if the completion is JSON that is valid under its row's JSON Schema, else 0."""

    type: Literal["json_schema"]  # validation of a JSON completion
    weight: Weight = 1.0  # weight of this reward in the sum of all rewards
    schema_column: str = "schema"  # name of the column with the JSON Schema


class RefusalRewardConfig(Settings):
    """1 if the completion refuses to answer, by a list of patterns or a small trained classifier, else 0. It is meant
    for evaluation. With a negative weight it trains a model to refuse less."""

    type: Literal["refusal"]  # classifier of refusals
    weight: Weight = 1.0  # weight of this reward in the sum of all rewards
    # regular expressions that identify a refusal by its opening; empty: the built-in list
    patterns: tuple[Pattern, ...] = ()
    # classifier of refusals in place of the patterns: default (English, German, French, Spanish, Chinese), or a file
    # that `python -m benchmarks.refusals` has written; None: the patterns
    classifier: PathText | None = None

    @property
    def classifier_file(self) -> str | None:
        """Return the user's file with a classifier; None: there is none."""
        return None if self.classifier == DEFAULT_CLASSIFIER else self.classifier

    @model_validator(mode="after")
    def one_detector(self) -> Self:
        if self.patterns and self.classifier is not None:
            raise ValueError("give patterns or classifier, not both: the classifier takes the place of the patterns")
        return self


def compares(reward: object) -> bool:
    """Return whether a reward compares the completions of a prompt with each other."""
    return isinstance(reward, PairwiseRewardConfig) or (isinstance(reward, JudgeRewardConfig) and reward.compare)


Combine = Literal["sum", "min"]
RefusalConfig = Annotated[RefusalRewardConfig | FunctionRewardConfig, Field(discriminator="type")]
"""Classifier of refusals: 1 for a refusal, 0 for an answer."""
RewardConfig = Annotated[
    FunctionRewardConfig
    | MathRewardConfig
    | ModelRewardConfig
    | ClassifierRewardConfig
    | PairwiseRewardConfig
    | JudgeRewardConfig
    | CodeRewardConfig
    | JsonSchemaRewardConfig
    | RefusalRewardConfig,
    Field(discriminator="type"),
]
