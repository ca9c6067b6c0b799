"""Objectives of rows: the names under which a recipe reports the rows of a source apart from others. Numpy only.

recipe ──► Prompt.objective ──prepare──► rows of the batch ──loss──► pairs/OBJECTIVE/accuracy, …
                           └───────────────────────────────────────► data/OBJECTIVE/rows, data/OBJECTIVE/reward
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from workers.gold import sampled_batch
from workers.margins import final_scores
from workers.stats import Metrics, ObjectiveTotals
from workers.types import Experience, ScoredBatch, TokenShard, TrainBatch

NONE = -1  # objective of a row that has none


def names_in(experience: Experience) -> tuple[str, ...]:
    """Return the objectives of a step's prompts, sorted."""
    return tuple(sorted({prompt.objective for prompt in experience.prompts if prompt.objective is not None}))


def with_objectives(batch: TrainBatch, experience: Experience, labels: tuple[str, ...] = ()) -> TrainBatch:
    """Return a batch whose rows have the objectives of their prompts; unchanged if no prompt has one.

    `labels`: all objectives, in the order of a reward model's scores; empty: those of the prompts, sorted.
    """
    names = labels or names_in(experience)
    if not names:
        return batch
    of_prompt = np.array([NONE if p.objective is None else names.index(p.objective) for p in experience.prompts])
    first = batch.row_offsets[:-1]  # first completion of each row
    origin = first if batch.sources is None else batch.sources[first]
    return replace(batch, objectives=of_prompt[experience.group_of[origin]], objective_names=names)


def own_scores(share: TokenShard, experience: Experience, labels: tuple[str, ...]) -> NDArray[np.float64]:
    """Return a reward model's score of each completion of `share`: with `labels`, that of its prompt's objective."""
    scores = final_scores(share, experience.completions)  # [n], with labels [n, K]
    if not labels:
        return scores
    prompts = (experience.prompts[group] for group in experience.group_of[share.completions])
    return scores[np.arange(len(scores)), [labels.index(str(prompt.objective)) for prompt in prompts]]


def objective_totals(batch: TrainBatch, updates: Sequence[NDArray[np.int64]]) -> tuple[ObjectiveTotals, ...]:
    """Return the rows and tokens of each objective per update, in the mean over the updates of a step.

    With these denominators the mean over the updates is the mean over all rows, also where the rows of an objective are
    not spread evenly over the updates.

    Args:
        updates: rows of each update.
    """
    if batch.objectives is None or not updates:
        return ()
    ends = batch.completions.offsets[batch.row_offsets]
    lengths, rows = np.diff(ends), np.concatenate(updates)
    which = batch.objectives[rows]
    return tuple(
        ObjectiveTotals(
            name=name,
            rows=float((which == i).sum() / len(updates)),
            tokens=float(lengths[rows[which == i]].sum() / len(updates)),
        )
        for i, name in enumerate(batch.objective_names)
    )


def objective_facts(scored: ScoredBatch) -> Metrics:
    """Return the number of groups of each objective in a step and, of samples, their mean reward."""
    facts: Metrics = {}
    for name in names_in(scored.experience):
        groups = np.array([prompt.objective == name for prompt in scored.experience.prompts])
        facts[f"data/{name}/rows"] = float(groups.sum())
        if scored.experience.logprobs is None or scored.rewards is None:
            continue
        samples = sampled_batch(scored)
        rewards = samples.raw_rewards if samples.raw_rewards is not None else samples.rewards
        mine = np.array([prompt.objective == name for prompt in samples.experience.prompts])
        mine = mine[samples.experience.group_of] if len(mine) else np.zeros(0, bool)
        if rewards is not None and mine.any():
            facts[f"data/{name}/reward"] = float(rewards[mine].mean())
    return facts
