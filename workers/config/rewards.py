"""Settings of the scorers that rewards are made of."""

from __future__ import annotations

import re
from typing import Annotated, Literal

from pydantic import AfterValidator, Field

from workers.config.base import Count, ModelOrigin, Moment, Positive, Settings, at_home

LARGEST = 3.4e38  # of float32, which rewards are
Weight = Annotated[float, Field(ge=-LARGEST, le=LARGEST)]
Memory = Annotated[int, Field(ge=64)]


def _is_a_pattern(text: str) -> str:
    try:
        re.compile(text)
    except re.error as error:
        raise ValueError(f"give a regular expression as Python has them: {error}") from None
    return text


Pattern = Annotated[str, Field(min_length=1), AfterValidator(_is_a_pattern)]


class FunctionRewardConfig(Settings):
    """A Python function with TRL's signature: `reward(prompts, completions, completion_ids, **columns)`. It runs in a
    process of its own, which is ended at a limit."""

    type: Literal["function"]
    function: Annotated[str, AfterValidator(at_home)]  # path/to/file.py:name, or package.module:name
    weight: Weight = 1.0
    timeout_s: Positive = 300.0  # to load it, and for each batch
    memory_mib: Memory = 4096  # of the function's processes together


class MathRewardConfig(Settings):
    """1 when the completion's final answer equals the `solution` column as mathematics, else 0 (math-verify)."""

    type: Literal["math"]
    weight: Weight = 1.0
    solution_column: str = "solution"


class ModelRewardConfig(ModelOrigin):
    """A reward model's score: a Hugging Face directory of a sequence-classification model with one label."""

    type: Literal["model"]
    weight: Weight = 1.0
    dtype: Literal["float32", "bfloat16"] = "bfloat16"
    max_length: Count = 1024  # tokens of prompt and completion, by the reward model's own tokenizer
    tokens_per_micro_batch: Count = 16384
    chat_template_kwargs: dict[str, bool | int | float | str] = Field(default_factory=dict)
    template_date: Moment | None = None  # as model.template_date


class CodeRewardConfig(Settings):
    """1 when the completion's Python program passes all tests of its row, else 0. Every test runs in a sandbox of its
    own (bubblewrap); where there is none the run is refused."""

    type: Literal["code"]
    weight: Weight = 1.0
    tests_column: str = "tests"  # assertions, inputs and outputs, or test_cases: docs/rewards.md
    partial_credit: bool = False  # true: the share of tests that it passes
    timeout_s: Positive = 10.0  # of processor time, for each test
    memory_mib: Memory = 512  # of address space


class JsonSchemaRewardConfig(Settings):
    """1 when the completion is JSON that the row's JSON Schema allows, else 0."""

    type: Literal["json_schema"]
    weight: Weight = 1.0
    schema_column: str = "schema"


class RefusalRewardConfig(Settings):
    """1 when the completion refuses to answer, as a list of patterns tells, else 0: docs/evaluation.md. To measure
    with; give it a negative weight where over-refusal is to be unlearned."""

    type: Literal["refusal"]
    weight: Weight = 1.0
    patterns: tuple[Pattern, ...] = ()  # empty: those of the classifier


RefusalConfig = Annotated[RefusalRewardConfig | FunctionRewardConfig, Field(discriminator="type")]
"""What says whether a completion refuses: 1, or 0 for an answer."""
RewardConfig = Annotated[
    FunctionRewardConfig
    | MathRewardConfig
    | ModelRewardConfig
    | CodeRewardConfig
    | JsonSchemaRewardConfig
    | RefusalRewardConfig,
    Field(discriminator="type"),
]
