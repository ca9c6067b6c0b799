"""The audit: one pass over the file, then one module for each family of findings, on the columns.

file ──read──► columns, words ──► repeats, near rows ──► findings ──► console, JSON, page, clean copy
                              ──► contradictions, conflicts
                              ──► length, agreement, contrast
                              ──► overlap with an evaluation
                              ──► small model ──► outliers, triggers, flips
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from importlib.util import find_spec

import numpy as np

from orchestrator.audit import agreement, contradictions, cuts, length, margins, overlap, poison, repeats, triggers
from orchestrator.audit.finding import Finding, Numbers, Severity
from orchestrator.audit.near import Near, near_rows
from orchestrator.audit.overlap import HeldOut
from orchestrator.audit.reading import Columns, Limits, Unusable, plain, read
from orchestrator.audit.words import normal
from orchestrator.data.audit import row_number
from orchestrator.data.detection import algorithm_for, format_of
from orchestrator.data.examples import stream_examples
from orchestrator.data.formats import Format
from orchestrator.errors import BadInput, Problem
from workers.types import Example

LIBRARIES = {"rensa": "near repeats", "sklearn": "length and poison", "krippendorff": "Krippendorff's α"}
INSTALL = "pip install 'rlhf-orchestrator[data]'"


@dataclass(frozen=True, kw_only=True, slots=True)
class Audit:
    """Result of an audit. Example: `Audit(source="pairs.jsonl", format=Format.preference, num_rows=900, num_pairs=880,
    findings=(…), agreement=None, lengths=Lengths(…), contrast=None, accuracy=0.74, left_out=(), seconds=1.9)`."""

    source: str
    format: Format
    num_rows: int  # with those that cannot be used
    num_pairs: int  # rows that prefer a completion to another
    findings: tuple[Finding, ...]
    agreement: agreement.Agreement | None  # None: no comparison was judged twice
    lengths: length.Lengths | None  # None: there are no pairs
    contrast: margins.Contrast | None  # None: no row carries a margin
    accuracy: float | None  # of the small model on held-out pairs; None: there are too few
    left_out: tuple[str, ...]  # what was not looked for, and why
    seconds: float

    @property
    def is_usable(self) -> bool:
        return not any(finding.severity == Severity.error for finding in self.findings)


@dataclass(frozen=True, kw_only=True, slots=True)
class Scope:
    """Selection of findings. `heavy`: near repeats and poison, which take minutes for a million rows."""

    heavy: bool = True
    why_not: str = ""  # why `heavy` is False

    def missing(self) -> tuple[str, ...]:
        """Return what cannot be looked for because its library is not installed."""
        absent = [what for library, what in LIBRARIES.items() if find_spec(library) is None]
        found = (f"{', '.join(absent)}: a library is missing ({INSTALL})",) if absent else ()
        return found if self.heavy else (*found, self.why_not)


def audit(
    source: str,
    *,
    split: str = "train",
    annotator: str | None = None,
    against: str | None = None,
    limits: Limits | None = None,
) -> Audit:
    """Audit a dataset.

    Args:
        split: of a Hub dataset or `datasets` folder.
        annotator: column that names the annotator, or None for one of the usual names.
        against: evaluation file whose prompts should not be trained on, or None.
        limits: model and length to check rows against, or None.

    Raises:
        BadInput: if the source cannot be read, has no usable row, or holds prompts alone.
    """
    started = time.monotonic()
    format = format_of(source, split)
    if format == Format.prompt_only:
        why, fix = "the rows have no completions", "give pairs, ratings, ranks, labels or demonstrations"
        raise BadInput(Problem(what="there is nothing to audit", where=source, why=why, fix=fix))
    held_out = None if against is None else overlap.read_held_out(against)
    columns = read(source, format, split=split, annotator=annotator, limits=limits)
    if annotator is not None and not columns.annotators.column:
        raise BadInput(Problem(what=f"--annotator {annotator}", where=source, why="no row has this column"))
    with closing(columns.words):
        return examine(columns, held_out=held_out, limits=limits, scope=Scope(), split=split, started=started)


def examine(
    columns: Columns,
    *,
    held_out: HeldOut | None = None,
    limits: Limits | None = None,
    scope: Scope,
    split: str = "train",
    started: float | None = None,
    examples: tuple[Example, ...] | None = None,
) -> Audit:
    """Look for every finding in the columns of a dataset.

    Args:
        examples: the rows, if they are in memory; None: those to name a trigger by are read again.
    """
    started = time.monotonic() if started is None else started
    has_model = find_spec("sklearn") is not None
    agreed = agreement.agreement_of(columns)
    measured = length.lengths_of(columns, with_model=has_model)
    near = near_rows(columns) if scope.heavy and find_spec("rensa") is not None else None
    predictions = poison.predict(columns) if scope.heavy and has_model else None
    found = [
        *repeats.find_unusable(columns),
        *repeats.find_equal(columns),
        *repeats.find_repeats(columns, near),
        *contradictions.find_contradictions(columns, near),
        *contradictions.find_conflicts(columns),
        *agreement.find_disagreement(columns, agreed),
        *length.find_length_bias(columns, measured),
        *margins.find_weak_contrast(columns),
        *cuts.find_cuts(columns, limits),
        *(overlap.find_overlap(columns, held_out) if held_out is not None else ()),
        *(_poison(columns, predictions, near, split, examples) if predictions is not None else ()),
    ]
    order = list(reversed(Severity))
    return Audit(
        source=columns.source,
        format=columns.format,
        num_rows=columns.num_rows,
        num_pairs=int(columns.is_pair.sum()),
        findings=tuple(sorted(found, key=lambda finding: order.index(finding.severity))),
        agreement=agreed,
        lengths=measured,
        contrast=margins.contrast_of(columns),
        accuracy=None if predictions is None else predictions.accuracy,
        left_out=(*scope.missing(), *_unsaid(columns, near, predictions, scope)),
        seconds=time.monotonic() - started,
    )


def _unsaid(columns: Columns, near: Near | None, predictions: poison.Predictions | None, scope: Scope) -> Iterator[str]:
    """Yield what the data were too many, too few or too hard for."""
    if near is not None and near.not_compared:
        yield f"near repeats: {near.not_compared:,} pairs of rows that look alike were not compared"
    pairs = int(columns.is_pair.sum())
    if not scope.heavy or find_spec("sklearn") is None or not pairs:
        return
    if predictions is None:
        yield f"triggers, outlying annotators and flipped labels: {pairs:,} pairs, and {poison.MIN_ROWS} are needed"
    elif predictions.accuracy < poison.LEARNED:
        yield (
            "triggers, outlying annotators and flipped labels: the small model predicts only "
            f"{predictions.accuracy:.0%} of held-out labels"
        )


def _poison(
    columns: Columns,
    predictions: poison.Predictions,
    near: Near | None,
    split: str,
    examples: tuple[Example, ...] | None,
) -> list[Finding]:
    """Report outlying groups, then triggers in the other rows, then single flips in the rest."""
    if predictions.accuracy < poison.LEARNED:
        return []
    found = list(poison.find_outliers(columns, predictions))
    of_outliers = _indices(columns, found)
    chosen = triggers.triggers(columns, predictions, of_outliers)
    names = _name(columns, chosen, split, examples)
    found += triggers.find_triggers(columns, predictions, chosen, names)
    opposites = near.opposites.ravel() if near is not None else np.zeros(0, np.int64)
    claims = columns.keys.claims()
    explained = [_indices(columns, found), opposites, contradictions.all_sides(claims)[:, 0]]
    return [*found, *poison.find_flips(columns, predictions, np.concatenate(explained))]


def _indices(columns: Columns, findings: list[Finding]) -> Numbers:
    dropped = [finding.dropped for finding in findings]
    return np.flatnonzero(np.isin(columns.numbers, np.concatenate(dropped))) if dropped else np.zeros(0, np.int64)


def _name(
    columns: Columns, found: list[triggers.Trigger], split: str, examples: tuple[Example, ...] | None
) -> dict[int, str]:
    """Return the words of each trigger, from the first row that has it."""
    names: dict[int, str] = {}
    first = {int(columns.numbers[trigger.rows.min()]): trigger.key for trigger in found}
    if examples is None:
        kept = read_again(columns.source, columns.format, frozenset(first), split) if first else {}
    else:
        kept = {int(columns.numbers[i]): examples[i] for i in (int(trigger.rows.min()) for trigger in found)}
    for trigger in found:
        example = kept[int(columns.numbers[trigger.rows.min()])]
        name = triggers.name_of(trigger.key, normal(plain(example.prompt.text)))
        names |= {} if name is None else {trigger.key: name}
    return names


def read_again(source: str, format: Format, numbers: frozenset[int], split: str) -> dict[int, Example]:
    """Read the usable rows of a source among those of the given numbers."""
    rows = stream_examples(
        source,
        Unusable(source),
        algorithm=algorithm_for(format),
        split=split,
        equal_pairs=Unusable(source),
        only=numbers,
        format=format,
    )
    return {row_number(example.prompt): example for _, example in rows}
