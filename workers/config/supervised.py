"""Settings of algorithms that learn from what a dataset shows."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from workers.config.optimisation import FromDataset


class SftConfig(FromDataset):
    """Supervised fine-tuning on the completions of a dataset."""

    type: Literal["sft"]
    learning_rate: Annotated[float, Field(gt=0, le=1)] = 2e-5
