"""Quarantine of prompts that crash the engine each time they are sampled. They are isolated and then left out.

    first two crashes    the same call is repeated unchanged
    after that           prompts are sampled one by one; one that crashes the engine twice, alone, is quarantined

What a call samples is noted in a file beside the experience. The next process reads the note, in this attempt or a
later one; the driver is not involved.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from workers.files import durable
from workers.types import Prompt

TOGETHER, ALONE = 2, 2  # crashes of a call before prompts are sampled one by one, and of one prompt before quarantine
LIST = "quarantined.jsonl"  # in the directory of the rollouts
BEGUN, WHOLE, ANSWERED = "begun", "whole", "answered"  # notes of a call; other notes are prompt ids
Encoded = tuple[Prompt, list[int]]


@contextmanager
def trial(file_prefix: str | None, index: int) -> Iterator[Trial]:
    """Watch one call of engine `index`. An exception counts as an answer; only a crash of the process does not.

    `file_prefix` is that of the call's files; None: the call writes none and is not watched.
    """
    watched = Trial(file_prefix, index)
    try:
        yield watched
    finally:
        watched.note(ANSWERED)


class Trial:
    """One call, and the crashes of its previous attempts. `left_out` are the prompts that it must not sample."""

    def __init__(self, file_prefix: str | None, index: int) -> None:
        self._notes = None if file_prefix is None else Path(f"{file_prefix}rollout-{index}.tried")
        crashes = [] if self._notes is None else _crashes(self._notes)
        self._one_by_one = len(crashes) >= TOGETHER
        self.left_out: set[str] = set()
        if file_prefix is not None:
            durable.make_directory(Path(file_prefix).parent)  # the driver made that of its own machine
            self.left_out = self._quarantine(Path(f"{file_prefix}x").parents[1] / LIST, crashes)
        self.note(BEGUN)

    def _quarantine(self, path: Path, crashes: Sequence[str]) -> set[str]:
        """Add the prompts that have crashed the engine alone to the list at `path`. Return all prompts in it."""
        listed = {entry["prompt"] for entry in quarantined(path)}
        guilty = {note for note in crashes if note not in (BEGUN, WHOLE) and crashes.count(note) >= ALONE}
        for prompt in guilty - listed:
            _append(path, {"prompt": prompt, "deaths": len(crashes)})
            listed.add(prompt)
        return listed

    def batches(self, prompts: Sequence[Encoded]) -> Iterator[Sequence[Encoded]]:
        """Yield the prompts to sample together. Each batch is noted before it is sampled."""
        if not self._one_by_one:
            self.note(WHOLE)
            yield prompts
            return
        for one in prompts:
            self.note(one[0].id)
            yield [one]

    def note(self, tried: str) -> None:
        """Append a note to the call's file."""
        if self._notes is not None:
            _append(self._notes, tried)


def quarantined(path: Path) -> list[dict[str, Any]]:
    """Read the list of quarantined prompts: `{"prompt": "prompts.jsonl:17", "deaths": 4}` each."""
    return _lines(path)


def _crashes(notes: Path) -> list[str]:
    """Return the last note of each process that has crashed in the call since it was last answered."""
    crashes: list[str] = []
    last = ""
    for tried in [*_lines(notes), BEGUN]:
        if tried == BEGUN and last:
            crashes = [] if last == ANSWERED else [*crashes, last]
        last = tried
    return crashes


def _append(path: Path, line: Any) -> None:
    with path.open("a") as file:
        file.write(f"\n{json.dumps(line)}")  # the line before may be torn: its process has crashed


def _lines(path: Path) -> list[Any]:
    lines = []
    for line in path.read_text().splitlines() if path.exists() else ():
        with suppress(ValueError):
            lines.append(json.loads(line))
    return lines
