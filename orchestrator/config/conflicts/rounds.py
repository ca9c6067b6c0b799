"""Conflicts about rounds: schedules, prompts per round, and the reference's start and average."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from orchestrator.config.conflicts.conflict import Conflict
from orchestrator.config.rounds import SECTIONS, RoundsConfig
from workers.config import DpoConfig

if TYPE_CHECKING:
    from orchestrator.config.run import RunConfig

BY_FILE = ("files", "cycle_files")


def rounds(config: RunConfig) -> Iterator[Conflict]:
    algorithm, own = config.algorithm, config.rounds
    if own == RoundsConfig():
        return
    if not algorithm.needs.rounds or config.data.prompts is None:
        given = next(name for name, field in RoundsConfig.model_fields.items() if getattr(own, name) != field.default)
        yield Conflict(
            keys=(f"rounds.{given}", "algorithm.type"),
            why="only iterative DPO (type dpo with data.prompts) has rounds",
            fix="remove rounds",
        )
        return
    count = algorithm.max_steps
    for name in SECTIONS:
        values = getattr(own, name)
        if count is not None and isinstance(values, tuple) and len(values) > count:
            yield Conflict(
                keys=(f"rounds.{name}", "algorithm.max_steps"),
                why=f"{len(values)} values for {count} rounds: the last ones would never be used",
                fix=f"give at most {count} values, or raise algorithm.max_steps",
            )
    fewest = min(own.prompts_per_step or (config.rollout.num_engines,))
    if fewest < config.rollout.num_engines:
        yield Conflict(
            keys=("rounds.prompts_per_step", "rollout.num_engines"),
            why="the completions of a prompt are sampled by one engine, so some engines would be idle",
            fix=f"set rollout.num_engines to at most {fewest}, or give more prompts per round",
        )
    yield from _files_of_rounds(config)


def mix(config: RunConfig) -> Iterator[Conflict]:
    algorithm, own = config.algorithm, config.rounds.mix
    if not isinstance(algorithm, DpoConfig) or config.data.prompts is None:  # there are no rounds, see above
        return
    if own.last != type(own).model_fields["last"].default and not own.earlier_rounds:
        yield Conflict(
            keys=("rounds.mix.last", "rounds.mix.earlier_rounds"),
            why="no pairs of earlier rounds are mixed in",
            fix="set earlier_rounds to 1.0, or remove last",
        )
    if own.earlier_rounds and algorithm.max_steps == 1:
        yield Conflict(
            keys=("rounds.mix.earlier_rounds", "algorithm.max_steps"),
            why="there is one round, and none before it",
            fix="raise max_steps, or remove earlier_rounds",
        )
    if own.earlier_rounds and not algorithm.pairs.keep_groups:
        yield Conflict(
            keys=("rounds.mix.earlier_rounds", "algorithm.pairs.keep_groups"),
            why="the pairs of earlier rounds are made of their stored groups, and none are stored",
            fix="set keep_groups to true, or remove earlier_rounds",
        )
    if own.dataset and config.data.dataset is None:
        yield Conflict(
            keys=("rounds.mix.dataset", "data.dataset"),
            why="there is no dataset whose pairs could be mixed in",
            fix="give data.dataset beside data.prompts, or remove rounds.mix.dataset",
        )
    if not own.is_on:
        return
    if algorithm.soft_labels in ("votes", "win_rate"):
        yield Conflict(
            keys=("rounds.mix", "algorithm.soft_labels"),
            why=f"the label {algorithm.soft_labels} needs the scores of the whole group, and given pairs have none",
            fix="set soft_labels to margin, or remove rounds.mix",
        )
    if algorithm.exploration_alpha:
        yield Conflict(
            keys=("rounds.mix", "algorithm.exploration_alpha"),
            why="the bonus is of samples of the reference, and pairs that are mixed in are none",
            fix="remove exploration_alpha or rounds.mix",
        )


def _files_of_rounds(config: RunConfig) -> Iterator[Conflict]:
    own, files, count = config.rounds, config.data.prompt_sources, config.algorithm.max_steps
    if own.prompts not in BY_FILE or count is None:
        return
    if len(files) < 2:
        yield Conflict(
            keys=("rounds.prompts", "data.prompts"),
            why=f"with {own.prompts} a round takes its prompts from a file of its own, and there is one file",
            fix="give a list of files as data.prompts, or set rounds.prompts to stream or fixed",
        )
    elif own.prompts == "files" and len(files) != count:
        yield Conflict(
            keys=("rounds.prompts", "data.prompts", "algorithm.max_steps"),
            why=f"{len(files)} files for {count} rounds",
            fix=f"give {count} files, or set rounds.prompts to cycle_files: again from the first file after the last",
        )
    elif len(files) > count:
        yield Conflict(
            keys=("data.prompts", "algorithm.max_steps"),
            why=f"{len(files)} files for {count} rounds: the last ones would never be used",
            fix=f"give at most {count} files, or raise algorithm.max_steps",
        )


def reference(config: RunConfig) -> Iterator[Conflict]:
    own = config.reference
    if own.refresh != "ema" and own.ema_alpha != type(own).model_fields["ema_alpha"].default:
        yield Conflict(
            keys=("reference.ema_alpha", "reference.refresh"),
            why=f"with refresh {own.refresh} there is no moving average",
            fix="set reference.refresh to ema, or remove ema_alpha",
        )
    if own.path is None:
        return
    if not config.algorithm.needs_reference:
        yield Conflict(
            keys=("reference.path", "algorithm.type"),
            why=f"{config.algorithm.type} with these settings has no reference",
            fix="remove reference.path",
        )
    if own.refresh == "ema":
        yield Conflict(
            keys=("reference.path", "reference.refresh"),
            why="the moving average is one of the run's own policies, and begins with the model that the run starts "
            "from",
            fix="remove reference.path, or choose another reference.refresh",
        )
