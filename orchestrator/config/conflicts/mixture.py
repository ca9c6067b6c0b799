"""Conflicts of several sources of rows: weights, and whatever chooses rows in another way."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import TYPE_CHECKING

from orchestrator.config.conflicts.conflict import Conflict
from orchestrator.data.sources import label
from workers.config import Sampled

if TYPE_CHECKING:
    from orchestrator.config.run import RunConfig

KEYS = ("prompts", "dataset", "eval_dataset")  # keys of `data` that may be several sources


def weights(config: RunConfig) -> Iterator[Conflict]:
    for key in KEYS:
        sources = config.data.sources(key)
        given = sum(source.weight is not None for source in sources)
        if 0 < given < len(sources):
            yield Conflict(
                keys=(f"data.{key}",),
                why=f"{given} of {len(sources)} sources have a weight, and the share of the others is unknown",
                fix="give every source a weight, or none: then each has the share of its size",
            )
    if config.data.shares("eval_dataset"):
        yield Conflict(
            keys=("data.eval_dataset",),
            why="a weight is a share of the rows that are trained on, and these are evaluated",
            fix="remove weight; every source is evaluated, and evaluation.max_prompts limits each",
        )
    if config.data.shares("dataset") and config.data.prompts is not None:
        yield Conflict(
            keys=("data.dataset", "data.prompts"),
            why="rounds.mix takes the rows of a dataset one after the other",
            fix="remove weight",
        )
    if config.data.shares("prompts"):
        yield from _weighted_prompts(config)


def _weighted_prompts(config: RunConfig) -> Iterator[Conflict]:
    own, algorithm = config.rounds, config.algorithm
    if own.prompts != "stream":
        yield Conflict(
            keys=("rounds.prompts", "data.prompts"),
            why=f"with {own.prompts} the prompts of a round are chosen without regard to weights",
            fix="set rounds.prompts to stream, or remove weight",
        )
    if own.prompts_per_step is not None:
        yield Conflict(
            keys=("rounds.prompts_per_step", "data.prompts"),
            why="weights are shares of steps of one size",
            fix="remove rounds.prompts_per_step or weight",
        )
    if isinstance(algorithm, Sampled) and algorithm.resamples:
        yield Conflict(
            keys=("algorithm.dynamic_sampling", "data.prompts"),
            why="further prompts are drawn from all sources alike, so that weights would not be the shares",
            fix="set dynamic_sampling to false, or remove weight",
        )


def names_of_files(config: RunConfig) -> Iterator[Conflict]:
    for key in KEYS:
        names = Counter(label(source.path) for source in config.data.sources(key))
        if repeated := [name for name, count in names.items() if count > 1]:
            rows = "prompts" if key == "prompts" else "rows"
            yield Conflict(
                keys=(f"data.{key}",),
                why=f"{repeated[0]} is the name of two files, and {rows} are told apart by file name and row",
                fix="rename one of them, or name each file once",
            )


def labels(config: RunConfig) -> Iterator[Conflict]:
    if not (names := config.algorithm.labels):
        return
    for key in ("dataset", "eval_dataset"):
        given = [source.objective for source in config.data.sources(key)]
        if any(objective not in names for objective in given):
            yield Conflict(
                keys=("algorithm.objectives", f"data.{key}"),
                why="a source has none of the objectives, and its pairs would train no score",
                fix=f"give every source of data.{key} an objective: {' or '.join(names)}",
            )
        elif key == "dataset" and (missing := [name for name in names if name not in given]):
            yield Conflict(
                keys=("algorithm.objectives", f"data.{key}"),
                why=f"no source has the objective {missing[0]}, and its score would stay random",
                fix="add a source with that objective, or remove it from algorithm.objectives",
            )
