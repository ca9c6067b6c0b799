"""Choice of the best round of iterative DPO by a held-out figure, and how sure it is.

metrics.jsonl ──► figure of each round ──► the highest one        evaluations/step-N.parquet ──► intervals

The round with the highest figure is the best one. Of equal figures, the earlier round is: it has moved less from the
initial model. Rounds that the best one is not certainly better than (95 % paired bootstrap over the held-out prompts)
are named beside it. They are not preferred to it: its figure is the best estimate there is.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from orchestrator.evaluation.statistics import mean
from orchestrator.rundir.exported import ExportedRound

MODES = {"eval/reward": "greedy", "eval/sampled_reward": "sampled"}
"""Mode of the answers whose mean reward is a figure, by the figure's name."""


def figures(rows: Sequence[Mapping[str, Any]], by: str) -> dict[int, float]:
    """Return a figure of each round that was evaluated, from the rows of metrics. The initial model is not a round."""
    return {row["step"]: row[by] for row in rows if row["step"] > 0 and row.get(by) is not None}


def best(by_round: Mapping[int, float]) -> int | None:
    """Return the round with the highest figure, of equal ones the earliest; None if no round has one.

    >>> best({1: 0.5, 2: 0.75, 3: 0.75})
    2
    """
    return max(by_round, key=lambda number: (by_round[number], -number), default=None)


def describe(
    choice: int, by_round: Mapping[int, float], answers: Mapping[int, Path], *, rounds: int, by: str
) -> ExportedRound:
    """Describe the choice of a round among those with a figure.

    Args:
        choice: the round.
        by_round: figure of each round.
        answers: file with the answers to the held-out prompts, by round.
        rounds: number of rounds done.
        by: name of the figure.
    """
    rewards = {number: rewards_of(path, MODES[by]) for number, path in answers.items()}
    chosen = rewards.get(choice, {})
    interval = mean(np.asarray(list(chosen.values())), seed=0) if len(chosen) > 1 else None
    others = {number: rewards.get(number, {}) for number in by_round if number != choice}
    return ExportedRound(
        round=choice,
        rounds=rounds,
        by=by,
        value=by_round[choice],
        low=None if interval is None else interval.low,
        high=None if interval is None else interval.high,
        unsure=tuple(sorted(number for number, other in others.items() if not _is_better(chosen, other))),
    )


def rewards_of(path: Path, mode: str) -> dict[str, float]:
    """Return the mean reward of each prompt's answers of one mode; empty if the file is missing or damaged."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        table = pq.read_table(path, columns=["mode", "prompt_id", "reward"]).to_pylist()
    except (OSError, pa.ArrowException):
        return {}
    by_prompt: dict[str, list[float]] = {}
    for row in table:
        if row["mode"] == mode:
            by_prompt.setdefault(row["prompt_id"], []).append(row["reward"])
    return {prompt: float(np.mean(values)) for prompt, values in by_prompt.items()}


def _is_better(ours: Mapping[str, float], theirs: Mapping[str, float]) -> bool:
    """Return whether the paired interval of the difference, over the prompts that both have, is above 0."""
    shared = sorted({*ours} & {*theirs})
    if len(shared) < 2:
        return False
    return mean(np.asarray([ours[prompt] - theirs[prompt] for prompt in shared]), seed=0).low > 0
