"""Rows of one key of `data`, in memory or in files, and what is known about all of them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from orchestrator.data.audit import Keys, prompt_keys
from orchestrator.data.remarks import Labels, count_labels
from workers.types import Example, Prompt

Row = Prompt | Example
BLOCK_ROWS = 2**15
KEY_BYTES = 8


@dataclass(frozen=True, kw_only=True, slots=True)
class Facts:
    """Facts about all rows of a source, found when they were written to files, so that none is read again.

    Example: `Facts(prompt_keys=Path("runs/.rows/4f…/prompt_keys"), labels=None, blocks=("9a…",), audit=())`.
    """

    prompt_keys: Path  # file with a hash of each prompt: [n]
    labels: Labels | None  # None: the rows are prompts
    blocks: tuple[str, ...]  # of the fingerprint: a hash of every 1024 rows
    audit: tuple[str, ...]  # warnings of the audit before a run


@dataclass(frozen=True, kw_only=True, slots=True)
class Source:
    """Rows of one key of `data`."""

    key: str  # "data.prompts"
    source: str
    rows: Sequence[Any]  # of Prompt, or of Example where the key ends in `dataset`
    files: Mapping[str, int]  # number of rows of each file, in their order
    is_complete: bool = True  # False: only the beginning of the source was read
    remarks: tuple[str, ...] = ()
    num_dropped: int = 0  # rows whose prompt is too long
    facts: Facts | None = None  # None: the rows are in memory

    @property
    def prompts(self) -> list[Prompt]:
        return [prompt_of(row) for row in self.rows]

    def prompt_keys(self) -> Iterator[Keys]:
        """Yield a hash of each prompt, in parts of BLOCK_ROWS: [b]."""
        for first in range(0, len(self.rows), BLOCK_ROWS):
            if self.facts is None:
                yield prompt_keys(map(prompt_of, self.rows[first : first + BLOCK_ROWS]))
            else:
                yield np.fromfile(self.facts.prompt_keys, np.uint64, BLOCK_ROWS, offset=first * KEY_BYTES)

    def labels(self) -> Labels:
        """Count the labels and votes of a dataset."""
        counted = None if self.facts is None else self.facts.labels
        return count_labels(self.rows) if counted is None else counted

    def summary(self) -> SourceSummary:
        first = prompt_of(self.rows[0])
        return SourceSummary(
            key=self.key,
            source=self.source,
            count=len(self.rows) + self.num_dropped,
            is_complete=self.is_complete,
            conversational=not isinstance(first.text, str),
            columns=tuple(first.columns),
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class SourceSummary:
    """Summary of one data source.

    Example: `SourceSummary(key="data.prompts", source="./prompts.jsonl", count=8, is_complete=True,
    conversational=False, columns=("solution",))`.
    """

    key: str
    source: str
    count: int  # rows read
    is_complete: bool  # False: only the beginning of the source was read
    conversational: bool  # prompts are lists of messages
    columns: tuple[str, ...]  # beside the prompt and its completions


def prompt_of(row: Row) -> Prompt:
    return row.prompt if isinstance(row, Example) else row
