"""Per-token outputs of a model for all completions of an experience, shared out over ranks.

The learner, the reference and reward models use the same forward pass for them.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from workers import progress
from workers.packing import Packed, cut, members, pack, shares
from workers.ragged import Ragged
from workers.types import Experience, TokenShard, merge

DUMMY_ROW = np.zeros(1, np.int64)
"""Rows of a rank without work: it computes row 0 and discards the result, because collectives need every rank."""


class ScoreCache:
    """Cache of per-token numbers by row: in the second epoch of a dataset no forward passes are needed.

    A row is identified by a hash of its tokens. Each rank stores the numbers that it computed itself. All ranks keep
    the same record of which rank computed which row, so they agree on the missing rows without communication.
    Memory: 4 bytes per token.
    """

    def __init__(self) -> None:
        self._owners: dict[bytes, int] = {}
        self._values: dict[bytes, NDArray[np.float32]] = {}

    def missing(self, keys: Sequence[bytes]) -> NDArray[np.int64]:
        """Return the indices of the rows that no rank has computed."""
        return np.asarray([i for i, key in enumerate(keys) if key not in self._owners], np.int64)

    def stored(self, keys: Sequence[bytes], rank: int) -> list[tuple[int, NDArray[np.float32]]]:
        """Return (index, numbers) of the rows that `rank` has computed."""
        return [(i, self._values[key]) for i, key in enumerate(keys) if self._owners.get(key) == rank]

    def set_owner(self, key: bytes, rank: int) -> None:
        """Record that `rank` computes a row."""
        self._owners[key] = rank

    def store(self, key: bytes, values: NDArray[np.float32]) -> None:
        """Store the numbers of a row that this rank has computed."""
        self._values[key] = values


def row_keys(prompts: Ragged, completions: Ragged, row_offsets: NDArray[np.int64]) -> list[bytes]:
    """Hash the tokens of each row: its prompt, and its completions with their lengths."""
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
    cache: ScoreCache | None = None,
    pad: int | None = None,
    whole_rows: bool = False,
    apart: bool = False,
) -> TokenShard:
    """Compute this rank's share of the per-token outputs. Every rank runs the same number of forward passes.

    Args:
        infer: forward pass over one micro-batch.
        budget: input positions per micro-batch. A longer group is cut into several rows, which may go to several ranks.
        cache: compute only the rows that it does not hold.
        pad: padding token of a reward model, see `packing.pack`.
        whole_rows: do not cut long groups.
        apart: the model reads each completion in a row of its own.
    """
    started = time.perf_counter()
    experience = merge(parts)
    prompts, completions, offsets = experience.prompt_tokens, experience.completions, experience.group_offsets
    if not whole_rows:
        prompts, offsets, _ = cut(prompts, completions, offsets, 1 if apart else budget, pad)
    keys = row_keys(prompts, completions, offsets) if cache is not None else []
    missing = cache.missing(keys) if cache is not None else np.arange(len(prompts))
    results = cache.stored(keys, rank) if cache is not None else []
    if len(missing):
        planned = shares(
            prompts, completions, offsets, missing, num_ranks=world_size, budget=budget, pad=pad, apart=apart
        )
        for rows in planned[rank]:
            output = infer(pack(prompts, completions, offsets, missing[rows] if len(rows) else DUMMY_ROW, pad))
            progress.report()
            if len(rows):
                sizes = [int(completions.lengths[members(offsets, missing[[row]])].sum()) for row in rows]
                results += zip(missing[rows].tolist(), np.split(output, np.cumsum(sizes)[:-1]), strict=True)
        if cache is not None:
            _store(cache, keys, missing, planned, results)
    picked = [members(offsets, np.asarray([row], np.int64)) for row, _ in results]
    return TokenShard(
        completions=np.concatenate([np.zeros(0, np.int64), *picked]),
        values=np.concatenate([values for _, values in results]) if results else np.zeros(0, np.float32),
        seconds=time.perf_counter() - started,
        chunk=experience.chunk,
    )


def _store(
    cache: ScoreCache,
    keys: Sequence[bytes],
    missing: NDArray[np.int64],
    planned: Sequence[Sequence[NDArray[np.int64]]],
    results: Sequence[tuple[int, NDArray[np.float32]]],
) -> None:
    for owner, share in enumerate(planned):
        for row in np.concatenate(share):
            cache.set_owner(keys[missing[row]], owner)
    for row, values in results:
        cache.store(keys[row], values)
