"""Metrics on disk, complete whatever other sinks a run has: one JSON object per line.

metrics.jsonl    a line for each step: everything that is known of it
updates.jsonl    a line for each optimiser update: what the learner measured in it
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from orchestrator import disk
from workers.stats import Metrics


class _Lines:
    """File of JSON objects, one per line. A line is fsynced before it counts.

    A driver opens the file once. The next driver of the run replaces it, so that one that wakes up after another took
    over appends to a file that nobody reads.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._opened: int | None = None  # file descriptor

    def open(self) -> None:
        """Open the file to append to it, creating it if needed."""
        self._opened = self._descriptor()

    def close(self) -> None:
        if self._opened is not None:
            os.close(self._opened)
        self._opened = None

    def _descriptor(self) -> int:
        existed = self.path.exists()
        file = os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        if not existed:
            disk.sync_directory(self.path.parent)
        return file

    def rows(self) -> list[dict[str, Any]]:
        """Return all complete rows. A partial line that an interrupted write left at the end is ignored."""
        raw = self.path.read_bytes() if self.path.exists() else b""
        return [json.loads(line) for line in raw[: raw.rfind(b"\n") + 1].splitlines()]

    def _append(self, head: Mapping[str, int], metrics: Metrics) -> None:
        """Append a row. NaN and infinity, which JSON cannot represent, become null.

        Raises:
            OSError: the line could not be written completely.
        """
        row = {**head, **{name: value if math.isfinite(value) else None for name, value in metrics.items()}}
        line = json.dumps(row, allow_nan=False).encode() + b"\n"
        file = self._descriptor() if self._opened is None else self._opened
        try:
            disk.append(file, line)
        finally:
            if self._opened is None:
                os.close(file)

    def _keep(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """Replace the file, also by an equal one."""
        if self.path.exists():
            disk.write_atomic(self.path, "".join(json.dumps(row) + "\n" for row in rows))


class MetricsFile(_Lines):
    """File with one line per step, written before the checkpoint of its step.

    Example: `{"step": 3, "loss": 0.35, "reward": 0.5, "train/global_step": 192.0}`. As in TRL, `train/global_step` is
    the number of optimiser updates so far.
    """

    def append(self, step: int, metrics: Metrics) -> None:
        """Append the line of a step. Raises OSError."""
        self._append({"step": step}, metrics)

    def rewind(self, last_step: int) -> None:
        """Drop the rows after `last_step`, because a resumed run repeats those steps."""
        self._keep([row for row in self.rows() if row["step"] <= last_step])


class UpdatesFile(_Lines):
    """File with one line per optimiser update.

    Example: `{"step": 2, "update": 130, "round": 2, "loss": 0.35, "grad_norm": 1.2, "learning_rate": 5e-07}`: `update`
    counts the updates of the whole run from 1. `round` is there if steps are rounds.
    """

    def append(self, step: int, update: int, metrics: Metrics, *, is_round: bool) -> None:
        """Append the line of an update. Raises OSError."""
        self._append({"step": step, "update": update, **({"round": step} if is_round else {})}, metrics)

    def rewind(self, last_step: int, updates: int) -> None:
        """Drop the rows after `last_step`, except for the first `updates` of the step after it."""
        rows, left = [], updates
        for row in self.rows():
            left -= row["step"] == last_step + 1
            if row["step"] <= last_step or (row["step"] == last_step + 1 and left >= 0):
                rows.append(row)
        self._keep(rows)
