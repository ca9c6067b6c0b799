"""A number for every token of an Experience, by the learner's own forward pass: what reference and critic share."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from workers.packing import Packed, input_lengths, members, pack, plan
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
    picked: list[NDArray[np.int64]] = [np.zeros(0, np.int64)]
    values: list[NDArray[np.float32]] = [np.zeros(0, np.float32)]
    if len(prompts):
        for rows in plan(input_lengths(prompts, completions, offsets), world_size, budget)[rank]:
            output = infer(pack(prompts, completions, offsets, rows if len(rows) else IDLE))
            if len(rows):
                picked.append(members(offsets, rows))
                values.append(output)
    return TokenShare(
        completions=np.concatenate(picked), values=np.concatenate(values), seconds=time.perf_counter() - started
    )
