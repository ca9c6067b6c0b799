"""Overlap of training rows with evaluation prompts: equal prompts, and prompts that share most of their 8-grams.

An evaluation prompt counts as contained in a row if at least SHARE of its distinct word 8-grams stand in the row's
prompt. A prompt of fewer than 8 words is compared as a whole. N-grams that stand in more than COMMON evaluation
prompts, such as those of a template, are not counted.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from orchestrator.audit.finding import Finding, Numbers, Severity, paired
from orchestrator.audit.reading import Columns, plain
from orchestrator.audit.words import ngrams, normal, part, words_of
from orchestrator.data.audit import prompt_keys, row_number
from orchestrator.data.detection import algorithm_for, format_of
from orchestrator.data.examples import read_examples
from orchestrator.data.formats import Format
from orchestrator.data.prompts import read_prompts
from orchestrator.data.rows import RowProblems
from workers.types import Prompt

N = 8
SHARE = 0.5
COMMON = 8
CHUNK = 20_000  # rows


@dataclass(frozen=True, kw_only=True, slots=True)
class HeldOut:
    """Prompts of an evaluation file, as hashes."""

    source: str
    numbers: Numbers  # [m] row of each prompt
    keys: NDArray[np.uint64]  # [m] hash of each prompt
    grams: NDArray[np.uint64]  # [g] ascending
    owners: Numbers  # [g] prompt of each n-gram
    sizes: Numbers  # [m] distinct n-grams of each prompt


def read_held_out(source: str, *, split: str = "test") -> HeldOut:
    """Read an evaluation file: prompts, or rows of any format with a prompt.

    Raises:
        BadInput: with every row that cannot be used.
    """
    format = format_of(source, split)
    if format == Format.prompt_only:
        return of_prompts(source, read_prompts(source, split=split))
    rows = read_examples(source, algorithm=algorithm_for(format), split=split, equal_pairs=RowProblems(source))
    return of_prompts(source, [row.prompt for row in rows])


def of_prompts(source: str, prompts: list[Prompt] | tuple[Prompt, ...]) -> HeldOut:
    """Return the hashes of evaluation prompts."""
    words = words_of([normal(plain(prompt.text)) for prompt in prompts])
    grams, offsets = ngrams(words, N)
    owners = np.repeat(np.arange(len(prompts)), np.diff(offsets))
    both = (
        np.unique(np.stack([grams, owners.astype(np.uint64)], 1), axis=0) if len(grams) else np.zeros((0, 2), np.uint64)
    )
    grams, owners = both[:, 0], both[:, 1].astype(np.int64)
    _, count = np.unique(grams, return_counts=True)
    is_common = np.repeat(count > COMMON, count)
    return HeldOut(
        source=source,
        numbers=np.array([row_number(prompt) for prompt in prompts], np.int64),
        keys=prompt_keys(prompts),
        grams=grams[~is_common],
        owners=owners[~is_common],
        sizes=np.bincount(owners, minlength=len(prompts)),
    )


def overlapping(columns: Columns, held_out: HeldOut) -> Numbers:
    """Return pairs [k, 2] (index of a row, index of the evaluation prompt that it contains), one for each row."""
    order = np.argsort(held_out.keys, kind="stable")
    at = np.minimum(np.searchsorted(held_out.keys[order], columns.keys.prompts), max(0, len(order) - 1))
    exact = np.flatnonzero(held_out.keys[order][at] == columns.keys.prompts) if len(order) else np.zeros(0, np.int64)
    found = [np.stack([exact, order[at[exact]]], 1)] if len(exact) else []
    for begin in range(0, len(columns) if len(held_out.grams) else 0, CHUNK):
        texts = part(columns.words.rows(begin, min(len(columns), begin + CHUNK)), 0)
        grams, offsets = ngrams(texts, N)
        rows = np.repeat(np.arange(len(offsets) - 1), np.diff(offsets))
        found.append(_contained(grams, rows, held_out) + np.array([[begin, 0]]))
    pairs = np.concatenate(found) if found else np.zeros((0, 2), np.int64)
    _, first = np.unique(pairs[:, 0], return_index=True)
    return pairs[first]


def _contained(grams: NDArray[np.uint64], rows: Numbers, held_out: HeldOut) -> Numbers:
    """Return pairs (row, evaluation prompt) in which enough n-grams of the prompt stand in the row."""
    left = np.searchsorted(held_out.grams, grams, "left")
    count = np.searchsorted(held_out.grams, grams, "right") - left
    hits = np.flatnonzero(count)
    sizes = count[hits]
    within = np.arange(sizes.sum()) - np.repeat(np.cumsum(sizes) - sizes, sizes)
    places = np.repeat(left[hits], sizes) + within  # of n-grams of the evaluation
    shared = np.unique(np.stack([np.repeat(rows[hits], sizes), held_out.owners[places], places], 1), axis=0)
    pairs, number = np.unique(shared[:, :2], axis=0, return_counts=True)
    contained: Numbers = pairs[number >= SHARE * held_out.sizes[pairs[:, 1]]]
    return contained


def find_overlap(columns: Columns, held_out: HeldOut) -> Iterator[Finding]:
    """Report rows that contain a prompt of the evaluation."""
    pairs = overlapping(columns, held_out)
    if not len(pairs):
        return
    rows, others = columns.numbers[pairs[:, 0]], held_out.numbers[pairs[:, 1]]
    prompts = len(np.unique(pairs[:, 1]))
    yield Finding(
        name="overlap",
        severity=Severity.warning,
        what=f"contain {prompts:,} of {len(held_out.numbers):,} prompts of {held_out.source}, equal or by at least "
        f"{SHARE:.0%} of their 8-grams",
        count=len(rows),
        of=columns.num_rows,
        fix="leave them out (--write-clean), or the evaluation measures memory",
        rows=paired(rows, others),
        dropped=rows,
        others=others,
    )
