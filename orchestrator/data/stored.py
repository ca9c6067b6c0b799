"""Rows of a large source in files of their own: written once, in the order of the run, and read one at a time.

    rows.jsonl     a row a line, as it is after all checks: nothing is parsed, dropped or marked again
    offsets        where each line begins, and the last one ends: n + 1 numbers of 8 bytes

Nothing is kept of a row that was read: what is in memory does not depend on the number of rows. The files are read, not
mapped, because pages of a mapped file count as memory of the process.
"""

from __future__ import annotations

import json
import os
import weakref
from array import array
from collections.abc import Iterable, Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, overload

import numpy as np

from workers.types import Example, Prompt

ROWS, OFFSETS = "rows.jsonl", "offsets"
NUMBER = np.dtype("<i8")
PLAIN = (str, int, float, bool, type(None))
READ_BYTES = 2**20  # of the offsets, where all rows are read in their order


class NotPlainError(ValueError):
    """A row that JSON would change. `args`: its id, and the name of the type that JSON does not have."""


class StoredRows(Sequence[Any]):
    """Rows of a folder that `store` wrote: of Prompt or of Example. Each access reads the row from the file anew."""

    def __init__(self, folder: Path) -> None:
        self._rows, self._offsets = (os.open(folder / name, os.O_RDONLY | os.O_CLOEXEC) for name in (ROWS, OFFSETS))
        for file in (self._rows, self._offsets):
            weakref.finalize(self, os.close, file)
        self._count = os.fstat(self._offsets).st_size // NUMBER.itemsize - 1

    def __len__(self) -> int:
        return self._count

    @overload
    def __getitem__(self, index: int) -> Any: ...
    @overload
    def __getitem__(self, index: slice) -> list[Any]: ...
    def __getitem__(self, index: int | slice) -> Any:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(self._count))]
        place = range(self._count)[index]  # an IndexError, and numbers from the end, as in a list
        begin, end = self._numbers(place, 2)
        return _row(os.pread(self._rows, end - begin, begin))

    def __iter__(self) -> Iterator[Any]:
        step = READ_BYTES // NUMBER.itemsize
        for first in range(0, self._count, step):
            offsets = self._numbers(first, min(step, self._count - first) + 1)
            for begin, end in pairwise(offsets):
                yield _row(os.pread(self._rows, end - begin, begin))

    def _numbers(self, first: int, count: int) -> list[int]:
        size = NUMBER.itemsize
        numbers: list[int] = np.frombuffer(os.pread(self._offsets, count * size, first * size), NUMBER).tolist()
        return numbers


def store(folder: Path, rows: Iterable[Prompt | Example]) -> None:
    """Write rows into an empty folder.

    Raises:
        NotPlainError: a row has a value that would not be the same after it is read, such as a date.
    """
    offsets = array("q", [0])
    with open(folder / ROWS, "wb") as file:
        for row in rows:
            fields = _fields(row)
            if (foreign := _foreign(fields)) is not None:
                raise NotPlainError(fields[0], foreign)
            offsets.append(offsets[-1] + file.write(json.dumps(fields).encode() + b"\n"))
    (folder / OFFSETS).write_bytes(np.asarray(offsets, NUMBER).tobytes())


def _fields(row: Prompt | Example) -> list[Any]:
    prompt = row.prompt if isinstance(row, Example) else row
    fields: list[Any] = [prompt.id, prompt.text, dict(prompt.columns), prompt.gold, prompt.objective]
    if isinstance(row, Example):
        fields += [list(row.completions), None if row.scores is None else list(row.scores)]
    return fields


def _row(line: bytes) -> Prompt | Example:
    id, text, columns, gold, objective, *rest = json.loads(line)
    prompt = Prompt(id=id, text=text, columns=columns, gold=gold, objective=objective)
    if not rest:
        return prompt
    completions, scores = rest
    return Example(prompt=prompt, completions=tuple(completions), scores=None if scores is None else tuple(scores))


def _foreign(value: object) -> str | None:
    """Return the name of a type in `value` that JSON does not have; None: there is none."""
    if type(value) in PLAIN:
        return None
    if type(value) is list:
        return next((found for item in value if (found := _foreign(item)) is not None), None)
    if type(value) is dict:
        if foreign := next((key for key in value if type(key) is not str), None):
            return f"{type(foreign).__name__} as a key"
        return next((found for item in value.values() if (found := _foreign(item)) is not None), None)
    return type(value).__name__
