"""Conflicts about the course of a run: steps, evaluations, checkpoints and reporting."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from orchestrator.config.conflicts.conflict import Conflict
from orchestrator.config.conflicts.data import trains_on_samples

if TYPE_CHECKING:
    from orchestrator.config.run import RunConfig


def steps(config: RunConfig) -> Iterator[Conflict]:
    max_steps = config.algorithm.max_steps
    if trains_on_samples(config) and max_steps is None:
        yield Conflict(
            keys=("algorithm.max_steps",),
            why="prompts can be sampled again and again, so the run would never end",
            fix="give the number of steps (iterative DPO: of rounds), for example `max_steps: 100`",
        )
    every = config.checkpoint.every
    if max_steps is not None and every is not None and every > max_steps:
        yield Conflict(
            keys=("checkpoint.every", "algorithm.max_steps"),
            why="nothing would be saved before the end",
            fix=f"set checkpoint.every to a value from 1 to {max_steps}",
        )


def evaluation(config: RunConfig) -> Iterator[Conflict]:
    """Yield evaluation settings without data. Pairs suit a reward model, which answers no prompts, and offline DPO."""
    algorithm, data = config.algorithm, config.data
    scores = algorithm.needs.head == "scores"
    pairs = algorithm.implicit_reward_beta is not None and data.dataset is not None and data.prompts is None
    held_out = {*data.answered} - {"prompts"} or data.eval_dataset is not None
    if config.evaluation.num_samples and data.eval_prompts is None:
        yield Conflict(
            keys=("evaluation.num_samples", "data.eval_prompts"),
            why="there are no prompts to answer",
            fix="give data.eval_prompts, or remove evaluation.num_samples",
        )
    if config.evaluation.temperatures and not config.evaluation.num_samples:
        yield Conflict(
            keys=("evaluation.temperatures", "evaluation.num_samples"),
            why="nothing is sampled at these temperatures",
            fix="set evaluation.num_samples, or remove evaluation.temperatures",
        )
    if config.evaluation.every is not None and not held_out:
        rows = "data.eval_dataset"
        wanted = rows if scores else "data.eval_prompts"
        either = f"{rows} (pairs), data.eval_prompts with a reward" if pairs else wanted
        yield Conflict(
            keys=("evaluation.every", rows if pairs else wanted),
            why="there is nothing to evaluate on",
            fix=f"give {either}, or remove evaluation.every",
        )
    if data.eval_dataset is not None and not (scores or pairs):
        yield Conflict(
            keys=("data.eval_dataset", "algorithm.type"),
            why="only a reward model, and DPO on a dataset, are evaluated on preferences",
            fix="give data.eval_prompts instead, or train on data.dataset with reward_model or dpo",
        )
    if data.eval_dataset is not None and pairs and not algorithm.needs_reference:
        yield Conflict(
            keys=("data.eval_dataset", "algorithm.loss_type"),
            why="the implicit reward of a pair is relative to a reference, and this loss has none",
            fix="remove data.eval_dataset, or choose another loss_type",
        )


def export(config: RunConfig) -> Iterator[Conflict]:
    in_rounds = config.algorithm.needs.rounds and config.data.prompts is not None
    given = next((key for key in ("round", "by") if getattr(config.export, key) is not None), None)
    if given is not None and not in_rounds:
        yield Conflict(
            keys=(f"export.{given}", "algorithm.type"),
            why="only iterative DPO (type dpo with data.prompts) has rounds",
            fix="remove export",
        )
    elif config.export.round == "best" and config.data.eval_prompts is None:
        yield Conflict(
            keys=("export.round", "data.eval_prompts"),
            why="there is no held-out figure by which one round is better than another",
            fix="give data.eval_prompts and set evaluation.every to 1, or set export.round to last",
        )
    elif config.export.by is not None and config.best_round_by is None:
        yield Conflict(
            keys=("export.by", "export.round"),
            why="the last round is exported, whatever its figures",
            fix="set export.round to best, or remove export.by",
        )
    elif config.export.by == "eval/sampled_reward" and not config.evaluation.num_samples:
        yield Conflict(
            keys=("export.by", "evaluation.num_samples"),
            why="no answers to the held-out prompts are sampled",
            fix="set evaluation.num_samples to 4 or more, or export.by to eval/reward",
        )


def checkpoints(config: RunConfig) -> Iterator[Conflict]:
    in_rounds = config.algorithm.needs.rounds and config.data.prompts is not None
    if config.checkpoint.every_updates is not None and not in_rounds:
        yield Conflict(
            keys=("checkpoint.every_updates", "algorithm.type"),
            why="only the rounds of iterative DPO are long enough to be saved in between",
            fix="remove it; checkpoint.every counts steps",
        )
    rolling_back = [name for name, rule in config.alarms if getattr(rule, "action", None) == "roll_back"]
    if rolling_back and config.checkpoint.every is None:
        yield Conflict(
            keys=(f"alarms.{rolling_back[0]}.action", "checkpoint.every"),
            why="roll_back needs a checkpoint from before the alarm, and by time there may be none",
            fix="set checkpoint.every to a number of steps, and checkpoint.keep so that the alarm's window is covered",
        )


def reporting(config: RunConfig) -> Iterator[Conflict]:
    if "wandb" not in config.report_to and config.wandb != type(config.wandb)():
        yield Conflict(
            keys=("wandb", "report_to"),
            why="wandb is configured but nothing reports to it",
            fix="add `report_to: [wandb]`, or remove wandb",
        )
