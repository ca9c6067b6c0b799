"""Find valid rows that are suspicious: repeated, contradicting one another, held out but also trained on.

Texts are compared by a 64-bit hash of what a reader sees: without surrounding white space, in Unicode's NFC form. One
comparison of a million rows takes 8 MB.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from itertools import combinations

import numpy as np
from numpy.typing import NDArray

from orchestrator.data.formats import as_read
from orchestrator.data.rows import SHOWN
from workers.types import Example, Prompt, Text

Keys = NDArray[np.uint64]


def repeated(examples: Sequence[Example]) -> list[tuple[int, int]]:
    """Return the indices (row, earlier row) of rows with the same prompt, completions and scores."""
    keys = _keys(_hash([*_read(e.prompt.text, *e.completions), e.scores]) for e in examples)
    order = np.argsort(keys, kind="stable")
    first, pairs = 0, []
    for i in range(1, len(order)):
        if keys[order[i]] != keys[order[first]]:
            first = i
        else:
            pairs.append((int(order[i]), int(order[first])))
    return sorted(pairs)


def contradicting(examples: Sequence[Example]) -> list[tuple[int, int]]:
    """Return the indices (row, earlier row) of rows that claim the opposite: a > b and b > a, or true and false."""
    claims = [(claim, opposite, row) for row, e in enumerate(examples) for claim, opposite in _claims(e)]
    mine, others = _keys(c[0] for c in claims), _keys(c[1] for c in claims)
    disputed = {claims[i][0] for i in np.flatnonzero(np.isin(mine, others))}
    first_row: dict[int, int] = {}  # by claim
    pairs = []
    for claim, opposite, row in claims:
        if claim in disputed:
            if opposite in first_row:
                pairs.append((row, first_row[opposite]))
            first_row.setdefault(claim, row)
    return pairs


def comparisons(examples: Sequence[Example], *, voter: str | None = None) -> dict[int, tuple[int, int]]:
    """Count, for each pair of completions, how many rows prefer the first and how many the second.

    A row that repeats another counts once. With `voter`, the name of a column, each distinct value of it has one vote.
    """
    votes: dict[int, tuple[set[object], set[object]]] = {}
    for example in examples:
        name = None if voter is None else str(example.prompt.columns.get(voter))
        for claim, opposite in _claims(example):
            votes.setdefault(min(claim, opposite), (set(), set()))[claim > opposite].add(name)
    return {key: (len(first), len(second)) for key, (first, second) in votes.items()}


def distinct_prompts(prompts: Sequence[Prompt]) -> int:
    return len(np.unique(_keys(_hash(_read(p.text)) for p in prompts)))


def _claims(example: Example) -> Iterator[tuple[int, int]]:
    """Yield hashes of the claims of a row about its completions, each with its opposite's."""
    prompt, *completions = _read(example.prompt.text, *example.completions)
    if example.scores is None:
        return
    if len(completions) == 1:
        label = bool(example.scores[0])
        yield _hash([prompt, completions[0], label]), _hash([prompt, completions[0], not label])
    for (a, high), (b, low) in combinations(zip(completions, example.scores, strict=True), 2):
        if high > low:
            yield _hash([prompt, a, b]), _hash([prompt, b, a])


def trained_on(held_out: Sequence[Prompt], trained: Sequence[Prompt]) -> list[int]:
    """Return the indices of held-out prompts that are also trained on."""
    mine, others = (_keys(_hash(_read(p.text)) for p in prompts) for prompts in (held_out, trained))
    return [int(i) for i in np.flatnonzero(np.isin(mine, others))]


def row_number(prompt: Prompt) -> int:
    """Return the row number of a prompt: 3 for the id "pairs.jsonl:3"."""
    return int(prompt.id.rpartition(":")[2])


def listed(rows: Sequence[Prompt]) -> str:
    """Return a list of row numbers as text: "rows 3, 5, 9 and 4 more"."""
    shown = ", ".join(str(row_number(row)) for row in rows[:SHOWN])
    more = f" and {len(rows) - SHOWN} more" if len(rows) > SHOWN else ""
    return f"row{'s' * (len(rows) > 1)} {shown}{more}"


def listed_pairs(pairs: Sequence[tuple[int, int]], examples: Sequence[Example]) -> str:
    """Return pairs of row numbers as text: "rows 3 and 1, 7 and 5, and 4 more"."""
    shown = [" and ".join(str(row_number(examples[i].prompt)) for i in pair) for pair in pairs[:SHOWN]]
    more = [f"and {len(pairs) - SHOWN} more"] if len(pairs) > SHOWN else []
    return "rows " + ", ".join(shown + more)


def _read(*texts: Text) -> list[object]:
    return [as_read(text) for text in texts]


def _hash(value: object) -> int:
    written = json.dumps(value, sort_keys=True, default=str).encode()
    return int.from_bytes(hashlib.blake2b(written, digest_size=8).digest(), "little")


def _keys(hashes: Iterator[int]) -> Keys:
    return np.fromiter(hashes, np.uint64)
