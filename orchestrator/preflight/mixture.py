"""Check the shares of several sources against their rows, and mark rows with the objective of their source."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

from orchestrator.config.run import RunConfig
from orchestrator.data.mixture import most_rows
from orchestrator.errors import Problem
from workers.types import Example, Prompt

BATCHES = {"prompts": "prompts_per_step", "dataset": "batch_size"}
"""Setting of the algorithm with the size of a batch, by key of `data` that may have weights."""


def problems_of_shares(config: RunConfig, name: str, files: Mapping[str, int]) -> Iterator[Problem]:
    """Yield a problem for each source that has fewer rows than a batch takes of them.

    Args:
        name: key of `data`.
        files: number of rows of each source, in their order.
    """
    shares = config.data.shares(name) if name in BATCHES else None
    if shares is None:
        return
    key = BATCHES[name]
    size = getattr(config.algorithm, key)
    for (file, count), share in zip(files.items(), shares, strict=True):
        wanted = most_rows(share, size)
        if count < wanted:
            yield Problem(
                what=f"{file} has {count} rows",
                where=f"data.{name}",
                why=f"its share of algorithm.{key} = {size} is up to {wanted}, and a batch takes each row at most once",
                fix=f"give it more rows or a smaller weight, or lower algorithm.{key}",
            )


def remarks_on_shares(config: RunConfig, name: str, files: Mapping[str, int]) -> list[str]:
    """Return a remark on how often the rows of each weighted source are trained on."""
    shares = config.data.shares(name) if name in BATCHES else None
    if shares is None or not all(files.values()):
        return []
    total = sum(files.values())
    parts = [
        f"{file} {share:.1%} (its rows {share * total / count:.2g} times per epoch)"
        for (file, count), share in zip(files.items(), shares, strict=True)
    ]
    return [f"data.{name}: shares of the rows: {', '.join(parts)}"]


def with_objective(rows: Sequence[Prompt | Example], objective: str) -> list[Prompt | Example]:
    """Return the rows of a source, marked with its objective."""
    return [
        replace(row, prompt=replace(row.prompt, objective=objective))
        if isinstance(row, Example)
        else replace(row, objective=objective)
        for row in rows
    ]
