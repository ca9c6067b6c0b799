"""Conditions for comparing runs: the same base model, held-out prompts and samples, and the same prompts trained on."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from orchestrator.config.run import RunConfig
from orchestrator.config.values import show
from orchestrator.data.examples import read_examples
from orchestrator.data.prompts import read_prompts
from orchestrator.data.sources import is_hub_name, local
from orchestrator.errors import Problem
from workers.config import (
    ClassifierRewardConfig,
    FunctionRewardConfig,
    ModelRewardConfig,
    ModelScorerConfig,
    RewardConfig,
)

SAME = (
    "model.path",
    "data.eval_prompts",
    "data.eval_split",
    "evaluation.max_prompts",
    "evaluation.num_samples",
    "rollout.max_prompt_length",
    "rollout.max_completion_length",
)
"""Settings that must be equal in all runs of a task, so that a difference can be attributed to the methods."""
READ_BYTES = 32 * 2**20
"""Size of the largest file whose prompts are compared with those of another."""


def disagreements(runs: Sequence[tuple[str, RunConfig]], where: str) -> Iterator[Problem]:
    """Yield the reasons why runs cannot be compared. `runs` are pairs of a name for messages and a config."""
    if not runs:
        return
    first_name, first = runs[0]
    for key in SAME:
        for name, config in runs[1:]:
            if _at(config, key) != _at(first, key):
                yield Problem(
                    what=f"{key} is {show(_at(config, key))} in {name} and {show(_at(first, key))} in {first_name}",
                    where=where,
                    why="a difference could not be attributed to the methods",
                    fix="use the same value, or compare these runs separately",
                )
                break
    for key in ("prompts", "dataset"):
        yield from _different_sources(runs, key, where)
    if first.data.eval_prompts is None:
        why, fix = "runs are compared on held-out prompts", "set data.eval_prompts"
        yield Problem(what=f"data.eval_prompts is missing in {first_name}", where=where, why=why, fix=fix)


def _different_sources(runs: Sequence[tuple[str, RunConfig]], key: str, where: str) -> Iterator[Problem]:
    """Yield a problem if two runs read their prompts, or their dataset, from different sources or splits."""
    given: dict[tuple[str, str], str] = {}
    for name, config in runs:
        if (source := getattr(config.data, key)) is not None:
            given.setdefault((source, config.data.split), name)
    if len(given) > 1:
        shown = " and ".join(f"{_source(*source)} in {name}" for source, name in list(given.items())[:2])
        why, fix = "the run with the better data would win", "train on the same data"
        yield Problem(what=f"data.{key} is {shown}", where=where, why=why, fix=fix)


def _source(path: str, split: str) -> str:
    return show(path) if split == "train" else f"{show(path)} (split {split})"


def _at(config: RunConfig, key: str) -> Any:
    value: Any = config
    for part in key.split("."):
        value = getattr(value, part)
    return value


# ------------------------------------------------------------------------------------------------ prompts of pairs


def compare_prompts(runs: Sequence[RunConfig]) -> Iterator[str]:
    """Yield a remark if on-policy methods sample for other prompts than those of the pairs that offline ones train on.

    The same source is the same prompts. Other sources are compared row by row if both are local files.
    """
    sampled = next((config for config in runs if config.data.prompts is not None), None)
    offline = next((config for config in runs if config.data.prompts is None), None)
    if sampled is None or offline is None:
        return
    files, pairs = sampled.data.prompt_sources, offline.data.paths("dataset")
    prompts, dataset = ", ".join(files), ", ".join(pairs)
    if (prompts, sampled.data.split) == (dataset, offline.data.split):
        return
    if not all(map(_is_readable, (*files, *pairs))):
        yield f"The pairs of {dataset} and the prompts of {prompts} were not compared: they may differ."
        return
    asked = {_text(prompt.text) for file in files for prompt in read_prompts(file, split=sampled.data.split)}
    kind, split = offline.algorithm.type, offline.data.split
    examples = [example for file in pairs for example in read_examples(file, algorithm=kind, split=split)]
    answered = {_text(example.prompt.text) for example in examples}
    common = len(asked & answered)
    if common < max(len(asked), len(answered)):
        yield (
            f"Of the {len(answered):,} prompts of the pairs and the {len(asked):,} prompts that are sampled for, "
            f"{common:,} are the same{'' if common else f'; set data.prompts: {dataset} to train all methods on them'}."
        )


def _is_readable(source: str) -> bool:
    path: Path = local(source)
    return not is_hub_name(source) and path.is_file() and path.stat().st_size <= READ_BYTES


def _text(prompt: Any) -> str:
    return prompt if isinstance(prompt, str) else json.dumps(prompt, sort_keys=True)


# ------------------------------------------------------------------------------------------------ scorers


def scorer_names(rewards: Sequence[RewardConfig], *, trained_on: bool = False) -> list[str]:
    """Return the names under which scorers are reported, as the workers name them; `trained_on`: without weight 0."""
    return [_scorer(reward) for reward in rewards if reward.weight or not trained_on]


def _scorer(reward: RewardConfig) -> str:
    if isinstance(reward, FunctionRewardConfig):
        return reward.function.rpartition(":")[2]
    if isinstance(reward, ClassifierRewardConfig):
        return reward.name
    if isinstance(reward, ModelScorerConfig):
        parts = Path(str(reward.path)).parts
        name = parts[-2] if len(parts) > 1 and parts[-1] == "model" else parts[-1]
        return f"{name}_{reward.label}" if isinstance(reward, ModelRewardConfig) and reward.label else name
    return reward.type


def missing_scorers(runs: Sequence[tuple[str, RunConfig]], gold: str | None, where: str) -> Iterator[Problem]:
    """Yield a problem for each method without the gold scorer, which would be found out after it has run.

    A method with a function is not checked: only its process knows the function's name.
    """
    for name, config in runs:
        names = scorer_names(config.reward)
        is_known = not any(isinstance(reward, FunctionRewardConfig) for reward in config.reward)
        if gold is not None and is_known and re.sub(r"_\d+$", "", gold) not in names and gold not in names:
            what = f"gold = {gold}, and {name} has no such scorer"
            why = f"its scorers are: {', '.join(names) or 'none'}"
            fix = "add the scorer to reward, with weight: 0.0 where it is not to be trained on"
            yield Problem(what=what, where=where, why=why, fix=fix)
