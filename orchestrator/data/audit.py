"""What is odd about rows that can be read: repeated, contradicting one another, held out and yet trained on.

Texts are compared by 64 bits of their hash, and as a reader sees them: without white space at their ends and with
accents in one spelling. A million rows take 8 MB for each comparison.
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
    """(row, the earlier row that it repeats), by index: same prompt, completions and scores."""
    keys = _keys(_hash([*_read(e.prompt.text, *e.completions), e.scores]) for e in examples)
    order = np.argsort(keys, kind="stable")
    first, found = 0, []
    for i in range(1, len(order)):
        if keys[order[i]] != keys[order[first]]:
            first = i
        else:
            found.append((int(order[i]), int(order[first])))
    return sorted(found)


def contradicting(examples: Sequence[Example]) -> list[tuple[int, int]]:
    """(row, an earlier row that says the opposite), by index: a over b against b over a, or true against false."""
    claims = [(claim, opposite, row) for row, e in enumerate(examples) for claim, opposite in _claims(e)]
    mine, others = _keys(c[0] for c in claims), _keys(c[1] for c in claims)
    disputed = {claims[i][0] for i in np.flatnonzero(np.isin(mine, others))}
    said: dict[int, int] = {}
    found = []
    for claim, opposite, row in claims:
        if claim in disputed:
            if opposite in said:
                found.append((row, said[opposite]))
            said.setdefault(claim, row)
    return found


def comparisons(examples: Sequence[Example], *, voter: str | None = None) -> dict[int, tuple[int, int]]:
    """Of every two completions that some row sets one above the other: how many rows say the one, and the other.

    A row that only repeats another counts once; with `voter`, a column, each different value of it has one vote.
    """
    said: dict[int, tuple[set[object], set[object]]] = {}
    for example in examples:
        who = None if voter is None else str(example.prompt.columns.get(voter))
        for claim, opposite in _claims(example):
            said.setdefault(min(claim, opposite), (set(), set()))[claim > opposite].add(who)
    return {key: (len(one), len(other)) for key, (one, other) in said.items()}


def distinct_prompts(prompts: Sequence[Prompt]) -> int:
    return len(np.unique(_keys(_hash(_read(p.text)) for p in prompts)))


def _claims(example: Example) -> Iterator[tuple[int, int]]:
    """What a row says of its completions, and the opposite of that."""
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
    """The held-out prompts, by index, that are trained on as well."""
    mine, others = (_keys(_hash(_read(p.text)) for p in prompts) for prompts in (held_out, trained))
    return [int(i) for i in np.flatnonzero(np.isin(mine, others))]


def row_number(prompt: Prompt) -> int:
    """Of "pairs.jsonl:3" the 3: the line of a text file."""
    return int(prompt.id.rpartition(":")[2])


def listed(rows: Sequence[Prompt]) -> str:
    """`rows 3, 5, 9 and 4 more`."""
    shown = ", ".join(str(row_number(row)) for row in rows[:SHOWN])
    more = f" and {len(rows) - SHOWN} more" if len(rows) > SHOWN else ""
    return f"row{'s' * (len(rows) > 1)} {shown}{more}"


def listed_pairs(pairs: Sequence[tuple[int, int]], examples: Sequence[Example]) -> str:
    """`rows 3 and 1, 7 and 5, and 4 more`."""
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
