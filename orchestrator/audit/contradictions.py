"""Rows that prefer opposite completions: exactly, nearly, or under different objectives.

Rows of different annotators that disagree are no contradiction but disagreement (`agreement.py`), and so are rows of
different objectives: both are counted apart from rows that contradict each other within one annotator and objective.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import numpy as np

from orchestrator.audit.finding import Finding, Numbers, Severity, paired
from orchestrator.audit.near import Near
from orchestrator.audit.reading import Columns
from orchestrator.data.audit import Claims, Pairs, disputes, mixed

MANY = 0.01  # share of shared comparisons from which on a conflict between objectives is a warning


def find_contradictions(columns: Columns, near: Near | None) -> Iterator[Finding]:
    """Report rows that prefer a to b where another one prefers b to a; of each such pair both rows are left out."""
    claims = columns.keys.claims()
    groups = columns.groups[claims.rows]
    within = replace(claims, claims=mixed(claims.claims, groups), opposites=mixed(claims.opposites, groups))
    exact = disputes(within)
    if len(exact):
        yield _finding(
            columns, exact, all_sides(within), "contradictions", "contradict another row, and the two cancel out"
        )
    if near is not None:
        pairs = near.opposites[~np.isin(near.opposites[:, 0], exact.ravel())]
        if len(pairs):
            what = "nearly contradict an earlier row: nearly the same texts, with the preference reversed"
            yield _finding(columns, pairs, np.concatenate([pairs, pairs[:, ::-1]]), "near_contradictions", what)


def _finding(columns: Columns, pairs: Pairs, sides: Pairs, name: str, what: str) -> Finding:
    found, dropped = columns.numbers[pairs], columns.numbers[sides]
    _, first = np.unique(dropped[:, 0], return_index=True)
    dropped = dropped[first]
    return Finding(
        name=name,
        severity=Severity.warning,
        what=what,
        count=len(dropped),
        of=columns.num_rows,
        fix="look at them and keep the right one; --write-clean leaves out both",
        rows=paired(found[:, 0], found[:, 1]),
        dropped=dropped[:, 0],
        others=dropped[:, 1],
    )


def all_sides(claims: Claims) -> Pairs:
    """Return every row with a claim whose opposite is claimed, each with the first row that does so."""
    if not len(claims.claims):
        return np.zeros((0, 2), np.int64)
    known, first = np.unique(claims.claims, return_index=True)
    at = np.minimum(np.searchsorted(known, claims.opposites), len(known) - 1)
    disputed = known[at] == claims.opposites
    return np.stack([claims.rows[disputed], claims.rows[first[at[disputed]]]], 1)


def find_conflicts(columns: Columns) -> Iterator[Finding]:
    """Report comparisons that two objectives decide in opposite ways: one model cannot learn both."""
    names = columns.objectives
    if len(names.names) < 2:
        return
    claims = columns.keys.claims()
    of = names.codes[claims.rows]
    for b in range(len(names.names)):
        for a in range(b):
            first, second = of == a, of == b
            shared, opposite, rows = _between(claims, first, second)
            if not opposite:
                continue
            numbers = columns.numbers[rows]
            share = opposite / shared
            yield Finding(
                name="conflicting_objectives",
                severity=Severity.warning if share >= MANY else Severity.note,
                what=f"the objectives `{names.names[a]}` and `{names.names[b]}` decide {opposite:,} of {shared:,} "
                f"shared comparisons ({share:.0%}) in opposite ways",
                count=opposite,
                of=None,
                fix="train one objective, weigh them in a reward model each, or keep the pairs on which they agree",
                rows=paired(numbers[:, 0], numbers[:, 1]),
            )


def _between(claims: Claims, first: Numbers, second: Numbers) -> tuple[int, int, Pairs]:
    """Count the comparisons that two sets of claims share, those with opposite claims, and return rows of these."""
    unordered = np.minimum(claims.claims, claims.opposites)
    shared = len(np.intersect1d(unordered[first], unordered[second]))
    known, at = np.unique(claims.claims[first], return_index=True)
    places = np.flatnonzero(first)[at]
    theirs = np.flatnonzero(second)
    if not len(known) or not len(theirs):
        return 0, 0, np.zeros((0, 2), np.int64)
    found = np.minimum(np.searchsorted(known, claims.opposites[theirs]), len(known) - 1)
    opposite = known[found] == claims.opposites[theirs]
    rows = np.stack([claims.rows[theirs[opposite]], claims.rows[places[found[opposite]]]], 1)
    return shared, len(np.unique(unordered[theirs[opposite]])), rows


def contradicting_comparisons(columns: Columns) -> int:
    """Count the comparisons that two objectives decide in opposite ways."""
    return sum(finding.count for finding in find_conflicts(columns))
