"""Settings of the scorers that rewards are made of."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from workers.config.base import Count, ModelOrigin, Positive, Settings

Memory = Annotated[int, Field(ge=64)]


class FunctionRewardConfig(Settings):
    """A Python function with TRL's signature: `reward(prompts, completions, completion_ids, **columns)`. It runs in a
    process of its own, which is ended at a limit."""

    type: Literal["function"]
    function: str  # path/to/file.py:name, or package.module:name
    weight: float = 1.0
    timeout_s: Positive = 300.0  # to load it, and for each batch
    memory_mib: Memory = 4096  # of the function's processes together


class MathRewardConfig(Settings):
    """1 when the completion's final answer equals the `solution` column as mathematics, else 0 (math-verify)."""

    type: Literal["math"]
    weight: float = 1.0
    solution_column: str = "solution"


class ModelRewardConfig(ModelOrigin):
    """A reward model's score: a Hugging Face directory of a sequence-classification model with one label."""

    type: Literal["model"]
    weight: float = 1.0
    dtype: Literal["float32", "bfloat16"] = "bfloat16"
    max_length: Count = 1024  # tokens of prompt and completion, by the reward model's own tokenizer
    tokens_per_micro_batch: Count = 16384
    chat_template_kwargs: dict[str, bool | int | float | str] = Field(default_factory=dict)


RewardConfig = Annotated[FunctionRewardConfig | MathRewardConfig | ModelRewardConfig, Field(discriminator="type")]
