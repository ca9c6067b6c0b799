"""Conflicts of runs that generate a data set: they train and evaluate nothing, and some rows need a reward."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from orchestrator.config.conflicts.conflict import Conflict
from workers.config import GenerateConfig

if TYPE_CHECKING:
    from orchestrator.config.run import RunConfig

OF_TRAINING = ("policy", "reference", "evaluation")
"""Sections of the config that only a run that trains reads."""


def generation(config: RunConfig) -> Iterator[Conflict]:
    algorithm = config.algorithm
    if not isinstance(algorithm, GenerateConfig):
        return
    for section in OF_TRAINING:
        own = getattr(config, section)
        if own != type(own)():
            yield Conflict(keys=(section, "algorithm.type"), why="generate trains nothing", fix=f"remove {section}")
    if config.model.lora is not None:
        yield Conflict(
            keys=("model.lora", "algorithm.type"),
            why="generate trains no adapters",
            fix="remove lora; the model/ of a LoRA run, which has its adapters merged, can be sampled from",
        )
    if config.data.shares("prompts") is not None:
        yield Conflict(
            keys=("data.prompts", "algorithm.type"),
            why="generate samples every prompt once, and weights say how often the prompts of a source are sampled",
            fix="remove weight, or take fewer prompts with max_rows",
        )
    if config.reward:
        return
    given = {
        "algorithm.filters.min_score": algorithm.filters.min_score is not None,
        "algorithm.per_prompt": algorithm.per_prompt is not None,
        "algorithm.rows": algorithm.rows in ("ratings", "abstention"),
    }
    for key in (key for key, is_given in given.items() if is_given):
        yield Conflict(
            keys=(key, "reward"),
            why="it goes by the reward of a completion, and nothing scores them",
            fix=f"add a reward, for example `reward: [{{type: math}}]`, or remove {key.rpartition('.')[2]}",
        )
