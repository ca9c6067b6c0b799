"""Settings of the scorers that rewards are made of."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from workers.config.base import Settings


class FunctionRewardConfig(Settings):
    """A Python function with TRL's signature: `reward(prompts, completions, completion_ids, **columns)`."""

    type: Literal["function"]
    function: str  # path/to/file.py:name, or package.module:name
    weight: float = 1.0


class MathRewardConfig(Settings):
    """1 when the completion's final answer equals the `solution` column as mathematics, else 0 (math-verify)."""

    type: Literal["math"]
    weight: float = 1.0
    solution_column: str = "solution"


RewardConfig = Annotated[FunctionRewardConfig | MathRewardConfig, Field(discriminator="type")]
