"""One pass over a dataset, from rows into columns of numbers: about 200 bytes a row in memory, its words on disk.

rows ──read──► examples ──► keys, lengths, margins, names of annotators, sources and objectives; words
  │
  └──► rows that no method can use, and rows whose completions are equal
"""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from orchestrator.audit.finding import Numbers
from orchestrator.audit.words import WordStore
from orchestrator.data import lengths
from orchestrator.data.audit import KeyBuilder, Pairs, RowKeys, mixed, repeats, row_number
from orchestrator.data.detection import algorithm_for
from orchestrator.data.examples import stream_examples
from orchestrator.data.formats import Format
from orchestrator.data.rows import RowProblems
from orchestrator.data.sources import local
from orchestrator.data.tokens import TokenCounter, num_bytes
from orchestrator.errors import BadInput, Problem
from workers.conversation import message_text
from workers.types import Example, Text

BATCH = 128  # rows whose words are found at once: their bytes fit into the cache of a core
MAX_REASONS = 100  # kinds of unusable rows that are told apart
ANNOTATORS = ("annotator", "annotator_id", "labeler", "labeler_id", "worker", "worker_id", "rater", "rater_id")
SOURCES = ("source", "dataset", "origin", "subset")
OBJECTIVE = "objective"
SCORES = (("chosen_score", "rejected_score"), ("score_chosen", "score_rejected"), ("chosen_rating", "rejected_rating"))
"""Columns of well-known datasets with a score of each side, of a reward model or a judge."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Names:
    """A column of names as codes. Example: `Names(column="annotator", names=("ann", "bob"), codes=[0, 1, 1, −1])`."""

    column: str  # empty: no row has such a column
    names: tuple[str, ...]
    codes: NDArray[np.int32]  # [n]; −1: the row has no name


@dataclass(frozen=True, kw_only=True, slots=True)
class Limits:
    """Lengths to check rows against. `tokens`: tokenizer of the model, which knows the model's positions."""

    tokens: TokenCounter
    max_length: int


def limits_of(model: str, max_length: int) -> Limits:
    """Return the limits of a model directory.

    Raises:
        BadInput: if its tokenizer cannot be read.
    """
    tokens = TokenCounter.of(local(model))
    if tokens is None:
        fix = "give a model directory with a tokenizer.json"
        raise BadInput(Problem(what="there is no tokenizer.json that can be read", where=f"--model {model}", fix=fix))
    return Limits(tokens=tokens, max_length=max_length)


@dataclass(kw_only=True, slots=True)
class Cut:
    """Numbers of rows that are too long, by what cuts them."""

    by_model: list[int] = field(default_factory=list)  # longer than the model's positions
    by_setting: list[int] = field(default_factory=list)  # longer than data.max_length, but not than the positions


@dataclass(frozen=True, kw_only=True, slots=True)
class Columns:
    """Columns of the n usable rows of a dataset. `numbers` are their places in the file; an index is one in here."""

    source: str
    format: Format
    num_rows: int  # of the file, with the unusable ones
    unusable: Mapping[str, Numbers]  # by what is wrong: numbers of rows
    equal: Numbers  # numbers of rows whose chosen and rejected are equal
    numbers: Numbers  # [n]
    keys: RowKeys
    best_bytes: NDArray[np.int64]  # [n]
    worst_bytes: NDArray[np.int64]  # [n]; 0: one completion
    is_pair: NDArray[np.bool_]  # [n] whether the best completion is preferred to the worst
    margins: NDArray[np.float64]  # [n] of the rows' own margins, ratings, ranks or scores; NaN: none
    annotators: Names
    sources: Names
    objectives: Names
    votes: NDArray[np.int64]  # [n, 2] votes of a row's `votes` for the best and for the worst completion
    words: WordStore  # empty if only what needs no words is looked for
    cut: Cut | None  # None: lengths were not checked

    def __len__(self) -> int:
        return len(self.numbers)

    @property
    def groups(self) -> NDArray[np.uint64]:
        """Code [n] of annotator and objective: rows of one group should not repeat or contradict each other."""
        annotator, objective = (names.codes.astype(np.int64) + 1 for names in (self.annotators, self.objectives))
        return (annotator * (len(self.objectives.names) + 1) + objective).astype(np.uint64)

    @property
    def is_bad(self) -> NDArray[np.bool_]:
        """True for rows [n] that label their only completion as bad."""
        first = self.keys.offsets[:-1]
        bad: NDArray[np.bool_] = (self.keys.sizes == 1) & (self.keys.scores[first] == 0)
        return bad

    def repeats(self) -> Pairs:
        """Return the indices [R, 2] (later, first) of equal rows of one group."""
        return repeats(mixed(self.keys.rows(), self.groups))


class Unusable(RowProblems):
    """Rows that cannot be used, by what is wrong with them. Unlike other problems, any number is accepted."""

    def __init__(self, source: str) -> None:
        super().__init__(source)
        self.by_reason: dict[str, array[int]] = {}

    def add(self, row: int, what: str, *, why: str = "", fix: str = "") -> None:
        known = what in self.by_reason or len(self.by_reason) < MAX_REASONS
        self.by_reason.setdefault(what if known else "other problems", array("q")).append(row)

    @property
    def numbers(self) -> Numbers:
        found = [np.frombuffer(rows, np.int64) for rows in self.by_reason.values()]
        return np.unique(np.concatenate(found)) if found else np.zeros(0, np.int64)


def read(
    source: str, format: Format, *, split: str = "train", annotator: str | None = None, limits: Limits | None = None
) -> Columns:
    """Read a dataset once.

    Args:
        annotator: column that names the annotator, or None for the first of ANNOTATORS that a row has.

    Raises:
        BadInput: if the source cannot be read at all.
    """
    unusable, equal = Unusable(source), Unusable(source)
    rows = stream_examples(source, unusable, algorithm=algorithm_for(format), split=split, equal_pairs=equal)
    builder = _Builder(format, annotator, limits)
    builder.extend(example for _, example in rows)
    return builder.build(source, {what: np.frombuffer(r, np.int64) for what, r in unusable.by_reason.items()}, equal)


def of_examples(source: str, examples: Sequence[Example], *, with_words: bool = True) -> Columns:
    """Return the columns of rows that have been read already. Their words take most of the time."""
    rated = any(len(e.completions) > 2 or (len(e.completions) == 2 and e.scores and e.scores[1]) for e in examples)
    builder = _Builder(Format.rated if rated else Format.preference, None, None, with_words=with_words)
    builder.extend(examples)
    return builder.build(source, {}, Unusable(source))


class _Codes:
    """Codes of the names in one of several columns: the first that any row has."""

    def __init__(self, columns: Sequence[str]) -> None:
        self._columns = columns
        self._column = ""
        self._codes: dict[str, int] = {}
        self._of_rows = array("i")

    def add(self, values: Mapping[str, Any]) -> None:
        if not self._column:
            self._column = next((column for column in self._columns if isinstance(values.get(column), str | int)), "")
        name = values.get(self._column)
        is_named = isinstance(name, str | int) and not isinstance(name, bool)
        self._of_rows.append(self._codes.setdefault(str(name), len(self._codes)) if is_named else -1)

    def build(self) -> Names:
        return Names(column=self._column, names=tuple(self._codes), codes=_as_array(self._of_rows, np.int32))


class _Builder:
    def __init__(
        self, format: Format, annotator: str | None, limits: Limits | None, *, with_words: bool = True
    ) -> None:
        self._format, self._limits, self._cut, self._with_words = format, limits, Cut(), with_words
        self._keys, self._words = KeyBuilder(), WordStore()
        self._numbers, self._best, self._worst = array("q"), array("q"), array("q")
        self._is_pair, self._margins, self._votes = array("b"), array("d"), array("q")
        self._annotators = _Codes((annotator,) if annotator else ANNOTATORS)
        self._sources, self._objectives = _Codes(SOURCES), _Codes((OBJECTIVE,))

    def extend(self, examples: Iterable[Example]) -> None:
        batch: list[Example] = []
        for example in examples:
            self._add(example)
            batch.append(example)
            if len(batch) == BATCH:
                self._flush(batch)
        self._flush(batch)

    def _add(self, example: Example) -> None:
        columns, completions = example.prompt.columns, example.completions
        self._keys.add(example)
        self._numbers.append(row_number(example.prompt))
        self._best.append(num_bytes(completions[0]))
        self._worst.append(num_bytes(completions[-1]) if len(completions) > 1 else 0)
        scores = example.scores
        self._is_pair.append(scores is not None and len(scores) > 1 and scores[0] > scores[-1])
        self._margins.append(self._margin(example))
        self._votes.extend(_votes(columns.get("votes")))
        for names in (self._annotators, self._sources, self._objectives):
            names.add(columns)

    def _margin(self, example: Example) -> float:
        """Return the margin that a row gives by itself, of any sign; NaN: none."""
        if self._format in (Format.rated, Format.ranked):
            return float("nan") if example.scores is None else example.scores[0] - example.scores[-1]
        columns = example.prompt.columns
        for ours, theirs in SCORES:
            chosen, rejected = columns.get(ours), columns.get(theirs)
            if isinstance(chosen, int | float) and isinstance(rejected, int | float):
                return float(chosen) - float(rejected)
        has_margin = example.scores is not None and len(example.scores) == 2 and example.scores[0] != 1.0
        return example.scores[0] if has_margin and example.scores is not None else float("nan")

    def _flush(self, batch: list[Example]) -> None:
        if not batch:
            return
        if self._with_words:
            self._words.add(
                [plain(e.prompt.text) for e in batch],
                [plain(e.completions[0]) for e in batch],
                [plain(e.completions[-1]) if len(e.completions) > 1 else "" for e in batch],
            )
        if self._limits is not None:
            self._measure(batch, self._limits)
        batch.clear()

    def _measure(self, batch: Sequence[Example], limits: Limits) -> None:
        """Find the rows that are too long for the setting, and those of them, or others, for the model's positions."""
        positions = limits.tokens.max_positions
        shorter = min(limits.max_length, positions or limits.max_length)
        found = lengths.measure_examples(batch, limits.tokens, max_tokens=shorter, max_bytes=float("inf"))
        long = [batch[i] for i in sorted({*found.dropped, *found.truncated})]
        if positions is not None and positions < limits.max_length:
            beyond = set(range(len(long)))
        elif positions is not None and long:
            again = lengths.measure_examples(long, limits.tokens, max_tokens=positions, max_bytes=float("inf"))
            beyond = {*again.dropped, *again.truncated}
        else:
            beyond = set()
        for i, example in enumerate(long):
            (self._cut.by_model if i in beyond else self._cut.by_setting).append(row_number(example.prompt))

    def build(self, source: str, unusable: Mapping[str, Numbers], equal: Unusable) -> Columns:
        self._words.finish()
        margins = _as_array(self._margins, np.float64)
        wrong = [*unusable.values(), equal.numbers]
        return Columns(
            source=source,
            format=self._format,
            num_rows=len(self._numbers) + sum(map(len, wrong)),
            unusable=unusable,
            equal=equal.numbers,
            numbers=_as_array(self._numbers, np.int64),
            keys=self._keys.build(),
            best_bytes=_as_array(self._best, np.int64),
            worst_bytes=_as_array(self._worst, np.int64),
            is_pair=_as_array(self._is_pair, np.int8).astype(bool),
            margins=margins,
            annotators=self._annotators.build(),
            sources=self._sources.build(),
            objectives=self._objectives.build(),
            votes=_as_array(self._votes, np.int64).reshape(-1, 2),
            words=self._words,
            cut=None if self._limits is None else self._cut,
        )


def _votes(votes: object) -> tuple[int, int]:
    """Count a row's `votes`: a list of true, for the best completion, and false."""
    if not isinstance(votes, list) or not all(isinstance(vote, bool) for vote in votes):
        return 0, 0
    return sum(votes), len(votes) - sum(votes)


def plain(text: Text) -> str:
    """Return the text of a conversation without its roles."""
    return text if isinstance(text, str) else "\n".join(map(message_text, text))


def _as_array(values: array[Any], dtype: Any) -> NDArray[Any]:
    return np.frombuffer(values, dtype) if len(values) else np.zeros(0, dtype)
