"""Conflicts between settings that are valid alone but not together. Each names its keys, the reason and the fix."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

from orchestrator.config.conflicts import data, generation, method, mixture, preference, rounds, schedule, scorers
from orchestrator.config.conflicts.conflict import Conflict, ConflictsError

if TYPE_CHECKING:
    from orchestrator.config.run import RunConfig

__all__ = ["RULES", "Conflict", "ConflictsError", "find_conflicts"]

RULES: tuple[Callable[[RunConfig], Iterator[Conflict]], ...] = (
    data.source, data.reward, schedule.steps, schedule.evaluation, schedule.export, data.batches, data.lengths,
    data.overlong, data.dynamic_sampling, method.roles, data.sampling, method.lora, schedule.checkpoints,
    schedule.reporting, method.pair_loss, method.pairs, preference.soft_labels, preference.exploration, method.teacher,
    method.distillation, rounds.rounds, rounds.mix, mixture.names_of_files, mixture.weights, mixture.labels,
    rounds.reference, scorers.combination, scorers.normalization, scorers.pairwise, scorers.endpoints,
    scorers.agreement, scorers.win_rates, generation.generation,
)  # fmt: skip


def find_conflicts(config: RunConfig) -> list[Conflict]:
    """Return all conflicts of `config`, in the order of the rules."""
    return [conflict for rule in RULES for conflict in rule(config)]
