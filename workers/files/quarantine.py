"""A prompt that ends its engine each time it is sampled: found by elimination, and left out from then on.

    twice         the same call again, as it was
    after that    prompt by prompt; one with which the engine has died twice, alone, is written down and left out

What a call was at when its process died stands in a file beside those it keeps. So the next process knows it, of this
attempt or of the one after it, and the driver need not.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from workers.types import Prompt

TOGETHER, ALONE = 2, 2  # deaths
LIST = "quarantined.jsonl"  # in the directory of the rollouts
BEGUN, WHOLE, ANSWERED = "begun", "whole", "answered"
Encoded = tuple[Prompt, list[int]]


@contextmanager
def trial(keep: str | None, index: int) -> Iterator[Trial]:
    """Around one call of engine `index`. What is raised in it is an answer: only a death is none. `keep`: how the names
    of the call's files begin; None: it is not kept, and nobody will know of it."""
    made = Trial(keep, index)
    try:
        yield made
    finally:
        made.note(ANSWERED)


class Trial:
    """One call, with what the ones before it died of. `left_out` are the prompts that it must not sample."""

    def __init__(self, keep: str | None, index: int) -> None:
        self._notes = None if keep is None else Path(f"{keep}rollout-{index}.tried")
        died_of = [] if self._notes is None else _deaths(self._notes)
        self._alone = len(died_of) >= TOGETHER
        self.left_out: set[str] = set()
        if keep is not None:
            self.left_out = self._judge(Path(f"{keep}x").parents[1] / LIST, died_of)
        self.note(BEGUN)

    def _judge(self, path: Path, died_of: Sequence[str]) -> set[str]:
        known = {entry["prompt"] for entry in quarantined(path)}
        for prompt in {one for one in died_of if one not in (BEGUN, WHOLE) and died_of.count(one) >= ALONE} - known:
            _append(path, {"prompt": prompt, "deaths": len(died_of)})
            known.add(prompt)
        return known

    def batches(self, prompts: Sequence[Encoded]) -> Iterator[Sequence[Encoded]]:
        """What to sample together; it is noted before it begins."""
        if not self._alone:
            self.note(WHOLE)
            yield prompts
            return
        for one in prompts:
            self.note(one[0].id)
            yield [one]

    def note(self, tried: str) -> None:
        if self._notes is not None:
            _append(self._notes, tried)


def quarantined(path: Path) -> list[dict[str, Any]]:
    """What a run's list says: `{"prompt": "prompts.jsonl:17", "deaths": 4}` of each."""
    return _lines(path)


def _deaths(notes: Path) -> list[str]:
    """What each process died of that has begun the call and not answered it, since it was answered last."""
    deaths: list[str] = []
    last = ""
    for tried in [*_lines(notes), BEGUN]:
        if tried == BEGUN and last:
            deaths = [] if last == ANSWERED else [*deaths, last]
        last = tried
    return deaths


def _append(path: Path, line: Any) -> None:
    with path.open("a") as file:
        file.write(f"\n{json.dumps(line)}")  # the one before may be torn: its process has died


def _lines(path: Path) -> list[Any]:
    found = []
    for line in path.read_text().splitlines() if path.exists() else ():
        with suppress(ValueError):
            found.append(json.loads(line))
    return found
