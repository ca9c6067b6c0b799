"""Ragged arrays: sequences of differing length in flat storage, never padded rectangles. Numpy only."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, kw_only=True, slots=True)
class Ragged:
    """Sequences of differing length in one flat array.

    >>> Ragged(values=np.array([5, 6, 7]), offsets=np.array([0, 2, 3]))[0]
    array([5, 6])
    """

    values: NDArray[Any]  # [T]
    offsets: NDArray[np.int64]  # [N + 1], rising from 0 to T

    @classmethod
    def of(cls, sequences: Sequence[NDArray[Any] | Sequence[int]], dtype: type = np.int32) -> Self:
        """Concatenate `sequences` into one flat array of `dtype`."""
        lengths = [len(s) for s in sequences]
        values = np.concatenate([np.asarray(s, dtype) for s in sequences]) if sequences else np.zeros(0, dtype)
        return cls(values=values, offsets=np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64))

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def __getitem__(self, index: int) -> NDArray[Any]:
        return self.values[self.offsets[index] : self.offsets[index + 1]]

    def __iter__(self) -> Iterator[NDArray[Any]]:
        return (self[i] for i in range(len(self)))

    @property
    def lengths(self) -> NDArray[np.int64]:  # [N]
        return np.diff(self.offsets)

    def positions(self, indices: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return the flat positions of the values of the sequences `indices`, in that order: [sum of lengths]."""
        lengths = self.lengths[indices]
        starts = np.repeat(self.offsets[indices] - np.concatenate([[0], np.cumsum(lengths)[:-1]]), lengths)
        return starts + np.arange(int(lengths.sum()), dtype=np.int64)

    def take(self, indices: NDArray[np.int64]) -> Ragged:
        """Return a copy of the sequences `indices`, in that order."""
        lengths = self.lengths[indices]
        return Ragged(
            values=self.values[self.positions(indices)],
            offsets=np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64),
        )


def concat(parts: Sequence[Ragged]) -> Ragged:
    """Return the sequences of all parts, one part after the other."""
    lengths = np.concatenate([p.lengths for p in parts])
    return Ragged(
        values=np.concatenate([p.values for p in parts]),
        offsets=np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64),
    )


@dataclass(frozen=True, kw_only=True, slots=True)
class TokenVectors:
    """One vector for each of T tokens, stored in the arrays that the ranks returned.

    A single [T, h] array of a whole step would take gigabytes, so only the vectors that are taken are copied.
    Values are float32, or uint16 that hold the bits of bfloat16.
    """

    pieces: tuple[NDArray[Any], ...]  # each [t, h]
    piece: NDArray[np.int64]  # [T] index into `pieces`
    place: NDArray[np.int64]  # [T] row of that piece

    def __len__(self) -> int:
        return len(self.piece)

    def of(self, tokens: NDArray[np.int64]) -> TokenVectors:
        """Return a view of the vectors of `tokens` [t], in that order."""
        return TokenVectors(pieces=self.pieces, piece=self.piece[tokens], place=self.place[tokens])

    def take(self, tokens: NDArray[np.int64]) -> NDArray[Any]:
        """Copy the vectors of `tokens` [t] into one array: [t, h]."""
        first = self.pieces[0]
        taken = np.empty((len(tokens), first.shape[1]), first.dtype)
        piece, place = self.piece[tokens], self.place[tokens]
        for i in np.unique(piece):
            here = piece == i
            taken[here] = self.pieces[i][place[here]]
        return taken
