"""A number for every token of an Experience, by the learner's own forward pass: what reference and critic share."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from workers.packing import Packed, input_lengths, pack, plan
from workers.types import Experience, TokenShare, merge

IDLE = np.zeros(1, np.int64)
"""The rows of a rank without work: it repeats row 0 and throws the answer away, so that no collective waits for it."""


def score_tokens(
    parts: Sequence[Experience],
    infer: Callable[[Packed], NDArray[np.float32]],
    *,
    rank: int,
    world_size: int,
    budget: int,
) -> TokenShare:
    """This rank's share of the groups in `parts`; every rank runs the same number of forward passes."""
    started = time.perf_counter()
    experience = merge(parts)
    prompts, completions, offsets = experience.prompt_tokens, experience.completions, experience.group_offsets
    groups = Groups(offsets)
    picked: list[NDArray[np.int64]] = [np.zeros(0, np.int64)]
    values: list[NDArray[np.float32]] = [np.zeros(0, np.float32)]
    if len(prompts):
        for rows in plan(input_lengths(prompts, completions, offsets), world_size, budget)[rank]:
            output = infer(pack(prompts, completions, offsets, rows if len(rows) else IDLE))
            if len(rows):
                picked.append(groups.members(rows))
                values.append(output)
    return TokenShare(
        completions=np.concatenate(picked), values=np.concatenate(values), seconds=time.perf_counter() - started
    )


class Groups:
    """Which completions belong to which rows."""

    def __init__(self, offsets: NDArray[np.int64]) -> None:
        self._offsets = offsets

    def members(self, rows: NDArray[Any]) -> NDArray[np.int64]:
        """Completions of the rows, row after row."""
        ranges = [np.arange(self._offsets[r], self._offsets[r + 1]) for r in rows]
        return np.concatenate(ranges) if ranges else np.zeros(0, np.int64)
