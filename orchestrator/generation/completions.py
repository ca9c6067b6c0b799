"""Completion of a prompt as a writer has stored it, and the parts of a run, read one after the other."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

from workers.writer import SCORE


@dataclass(frozen=True, kw_only=True, slots=True)
class Completion:
    """Completion as text, with what is known of it.

    Example: `Completion(prompt_id="prompts.jsonl:3", sample=0, text="4", tokens=2, finish="stop", repetition=0.0,
    version=0, seed=7, score=1.0, scores={"math": 1.0})`.
    """

    prompt_id: str
    sample: int  # of its prompt, from 0
    text: str
    tokens: int  # the end of sequence included
    finish: str  # Finish.name
    repetition: float  # share of its tokens in a block that is repeated at its end
    version: int  # of the policy that sampled it
    seed: int
    score: float | None  # reward; None: nothing scores it
    scores: Mapping[str, float | None]  # by scorer


def read_part(path: Path) -> Iterator[Sequence[Completion]]:
    """Yield the completions of each prompt of a part, in the order of the prompts."""
    import pyarrow.parquet as pq

    rows = pq.read_table(path).to_pylist()
    for _, group in groupby(rows, key=lambda row: row["prompt_id"]):
        yield [_completion(row) for row in group]


def _completion(row: Mapping[str, Any]) -> Completion:
    return Completion(
        prompt_id=row["prompt_id"],
        sample=row["sample"],
        text=row["completion"],
        tokens=row["tokens"],
        finish=row["finish"],
        repetition=row["repetition"],
        version=row["version"],
        seed=row["seed"],
        score=row["score"],
        scores={name.removeprefix(SCORE): value for name, value in row.items() if name.startswith(SCORE)},
    )
