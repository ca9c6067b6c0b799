"""A number (or vector) for every token of an Experience, by the learner's own forward pass: what reference and critic
share."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from workers.packing import Packed, cut, members, pack, shares
from workers.types import Experience, Ragged, TokenShard, merge

IDLE = np.zeros(1, np.int64)
"""The rows of a rank without work: it repeats row 0 and throws the answer away, so that no collective waits for it."""


class Memory:
    """Numbers of rows that were scored before: a dataset's second epoch asks the model for nothing.

    A row is known by its tokens. Each rank keeps the numbers it computed itself, and all ranks keep the same list of
    who computed what, so they agree on what is left to do without a word to each other. 4 bytes per token.
    """

    def __init__(self) -> None:
        self._owners: dict[bytes, int] = {}
        self._values: dict[bytes, NDArray[np.float32]] = {}

    def unknown(self, keys: Sequence[bytes]) -> NDArray[np.int64]:
        """Which of the rows nobody has scored."""
        return np.asarray([i for i, key in enumerate(keys) if key not in self._owners], np.int64)

    def known(self, keys: Sequence[bytes], rank: int) -> list[tuple[int, NDArray[np.float32]]]:
        """The rows this rank answers for, with their numbers."""
        return [(i, self._values[key]) for i, key in enumerate(keys) if self._owners.get(key) == rank]

    def owned(self, key: bytes, rank: int) -> None:
        self._owners[key] = rank

    def keep(self, key: bytes, values: NDArray[np.float32]) -> None:
        self._values[key] = values


def row_keys(prompts: Ragged, completions: Ragged, row_offsets: NDArray[np.int64]) -> list[bytes]:
    """A hash of each row's tokens: its prompt, and its completions with their lengths."""
    keys = []
    for row, tokens in enumerate(prompts):
        members_of = completions.take(np.arange(*row_offsets[row : row + 2]))
        digest = hashlib.blake2b(digest_size=16)
        for part in (tokens, members_of.lengths, members_of.values):
            digest.update(part.size.to_bytes(8, "little") + np.ascontiguousarray(part, np.int64).tobytes())
        keys.append(digest.digest())
    return keys


def score_tokens(
    parts: Sequence[Experience],
    infer: Callable[[Packed], NDArray[Any]],
    *,
    rank: int,
    world_size: int,
    budget: int,
    memory: Memory | None = None,
    pad: int | None = None,
    whole_rows: bool = False,
    apart: bool = False,
) -> TokenShard:
    """This rank's share of the groups in `parts`; every rank runs the same number of forward passes. With a `memory`
    only rows that are not in it are asked for. `pad` as `pack` has it. A group that is longer than the budget is cut
    into several rows, perhaps of several ranks, unless `whole_rows` are wanted. `apart`: the model reads each
    completion in a row of its own."""
    started = time.perf_counter()
    experience = merge(parts)
    prompts, completions, offsets = experience.prompt_tokens, experience.completions, experience.group_offsets
    if not whole_rows:
        prompts, offsets, _ = cut(prompts, completions, offsets, 1 if apart else budget, pad)
    keys = row_keys(prompts, completions, offsets) if memory is not None else []
    asked = memory.unknown(keys) if memory is not None else np.arange(len(prompts))
    answers = memory.known(keys, rank) if memory is not None else []
    if len(asked):
        planned = shares(
            prompts, completions, offsets, asked, num_ranks=world_size, budget=budget, pad=pad, apart=apart
        )
        for rows in planned[rank]:
            output = infer(pack(prompts, completions, offsets, asked[rows] if len(rows) else IDLE, pad))
            if len(rows):
                sizes = [int(completions.lengths[members(offsets, asked[[row]])].sum()) for row in rows]
                answers += zip(asked[rows].tolist(), np.split(output, np.cumsum(sizes)[:-1]), strict=True)
        if memory is not None:
            _remember(memory, keys, asked, planned, answers)
    picked = [members(offsets, np.asarray([row], np.int64)) for row, _ in answers]
    return TokenShard(
        completions=np.concatenate([np.zeros(0, np.int64), *picked]),
        values=np.concatenate([values for _, values in answers]) if answers else np.zeros(0, np.float32),
        seconds=time.perf_counter() - started,
    )


def _remember(
    memory: Memory,
    keys: Sequence[bytes],
    asked: NDArray[np.int64],
    planned: Sequence[Sequence[NDArray[np.int64]]],
    answers: Sequence[tuple[int, NDArray[np.float32]]],
) -> None:
    for owner, share in enumerate(planned):
        for row in np.concatenate(share):
            memory.owned(keys[asked[row]], owner)
    for row, values in answers:
        memory.keep(keys[row], values)
