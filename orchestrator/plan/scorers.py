"""Seconds that a reward worker spends on one completion, by type of scorer."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from workers.config import JudgeRewardConfig, PairwiseRewardConfig, RefusalRewardConfig, RewardConfig


@dataclass(frozen=True, kw_only=True, slots=True)
class ScorerCost:
    """Processor time of one completion on one core."""

    seconds: float
    parallel: bool = False  # over the cores of a worker
    source: str


SCORERS: Mapping[str, ScorerCost] = {
    "math": ScorerCost(
        seconds=16e-3,
        source="assumed; measured on made answers: 3 ms where the answer is marked, 10 ms where it is not",
    ),
    "json_schema": ScorerCost(seconds=1.1e-3, source="measured: an object of 20 items in a fence"),
    "classifier": ScorerCost(seconds=0.0, source="its forward pass is on a GPU; its tokenisation is not counted"),
    "refusal": ScorerCost(seconds=0.03e-3, source="measured: 3 kB of text"),
    "code": ScorerCost(
        seconds=0.2, parallel=True, source="measured: 0.04 s per test in its sandbox; 5 tests per row are assumed"
    ),
    "function": ScorerCost(seconds=1e-3, source="assumed; the call itself takes 0.03 ms, measured"),
    "pairwise": ScorerCost(
        seconds=1.1e-3,
        source="measured: tokenisation of a comparison of 1,300 tokens in one order; the forward pass is on a GPU",
    ),
    "judge": ScorerCost(seconds=2.0, source="assumed, of each question; a worker asks `concurrency` at a time"),
    "model": ScorerCost(seconds=0.0, source="its forward pass is on a GPU; its tokenisation is not counted"),
}
"""By `type` in a recipe."""
REFUSAL_CLASSIFIER = ScorerCost(seconds=0.5e-3, source="measured: 3 kB of text, of which it reads 300 characters")


def cpu_s(rewards: Sequence[RewardConfig], *, prompts: int, group: int, workers: int, cpus: float) -> float:
    """Return the processor time of the busiest of `workers` for `prompts` with `group` completions each.

    Waiting for a judge counts as well. A worker has `cpus` cores, takes whole groups, and runs its scorers one after
    another.
    """
    groups, cores, total = math.ceil(prompts / workers), max(1, int(cpus)), 0.0
    for reward in rewards:
        trained = isinstance(reward, RefusalRewardConfig) and reward.classifier is not None
        cost = REFUSAL_CLASSIFIER if trained else SCORERS[reward.type]
        if isinstance(reward, JudgeRewardConfig):
            texts, at_once = reward.questions(group), reward.concurrency
        else:
            texts = 2 * reward.comparisons(group) if isinstance(reward, PairwiseRewardConfig) else group
            at_once = cores if cost.parallel else 1
        total += groups * texts * cost.seconds / at_once
    return total
