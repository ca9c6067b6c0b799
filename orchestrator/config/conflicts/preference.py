"""Conflicts of terms in the loss of preference pairs: soft labels and the exploration bonus."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from orchestrator.config.conflicts.conflict import Conflict
from orchestrator.config.conflicts.data import reshaped
from workers.config import DpoConfig

if TYPE_CHECKING:
    from orchestrator.config.run import RunConfig

UNBIASED = ("random", "all")
"""Selections of pairs that do not look at how far the scores are apart."""


def soft_labels(config: RunConfig) -> Iterator[Conflict]:
    algorithm = config.algorithm
    if not isinstance(algorithm, DpoConfig):
        return
    if algorithm.label_temperature != 1 and algorithm.soft_labels != "margin":
        yield Conflict(
            keys=("algorithm.label_temperature", "algorithm.soft_labels"),
            why="label_temperature divides the score margin of soft labels, and there is none",
            fix="remove label_temperature, or set soft_labels to margin",
        )
    if algorithm.soft_labels not in (None, "hard") and algorithm.dpop_lambda:
        yield Conflict(
            keys=("algorithm.soft_labels", "algorithm.dpop_lambda"),
            why="dpop_lambda protects the chosen completion, and a soft label says that it may be the rejected one",
            fix="remove soft_labels or dpop_lambda",
        )


def exploration(config: RunConfig) -> Iterator[Conflict]:
    """Yield what keeps the completions of pairs from being samples of the reference."""
    algorithm = config.algorithm
    if not isinstance(algorithm, DpoConfig) or not algorithm.exploration_alpha:
        return
    if config.data.prompts is None:
        yield Conflict(
            keys=("algorithm.exploration_alpha", "data.dataset"),
            why="the bonus is of samples of the reference, and the completions of a dataset are none",
            fix="remove exploration_alpha, or give data.prompts instead",
        )
        return
    wanted = [
        # setting, whether it is as wanted, the value that is wanted
        ("reference.refresh", config.reference.refresh == "every_round", "every_round"),
        ("rollout.temperature", config.rollout.temperature == 1, "1.0"),
        ("rounds.temperature", config.rounds.temperature is None, "null"),
        *((f"rollout.{key}", False, neutral) for key, neutral in reshaped(config)),
        ("max_staleness", config.max_staleness == 0, "0"),
        ("algorithm.pairs.selection", algorithm.pairs.selection in UNBIASED, " or ".join(UNBIASED)),
        ("algorithm.pairs.gold", algorithm.pairs.gold == "never", "never"),
    ]
    for key, is_right, value in wanted:
        if not is_right:
            yield Conflict(
                keys=(key, "algorithm.exploration_alpha"),
                why="the bonus is of samples of the reference, which the completions of pairs are not here",
                fix=f"set {key} to {value}, or remove exploration_alpha",
            )
