"""metrics.jsonl: one JSON object per step. Complete, whatever other sinks a run has."""

from __future__ import annotations

import json
import math
import os
from pathlib import Path
from typing import Any

from orchestrator import disk
from workers.types import Metrics


class MetricsFile:
    """File with one line per step. A line is fsynced before the checkpoint of its step is written.

    NaN and infinity, which JSON cannot represent, become null.

    Example: `{"step": 3, "train/global_step": 3, "loss": 0.35, "reward": 0.5}`.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def append(self, step: int, metrics: Metrics) -> None:
        """Append the line of a step.

        Raises:
            OSError: the line could not be written completely.
        """
        row: dict[str, Any] = {"step": step, "train/global_step": step}
        row |= {name: value if math.isfinite(value) else None for name, value in metrics.items()}
        line = json.dumps(row, allow_nan=False).encode() + b"\n"
        existed = self.path.exists()
        file = os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        try:
            disk.append(file, line)
        finally:
            os.close(file)
        if not existed:
            disk.sync_directory(self.path.parent)

    def rows(self) -> list[dict[str, Any]]:
        """Return all complete rows. A partial line that an interrupted write left at the end is ignored."""
        raw = self.path.read_bytes() if self.path.exists() else b""
        return [json.loads(line) for line in raw[: raw.rfind(b"\n") + 1].splitlines()]

    def rewind(self, last_step: int) -> None:
        """Drop the rows after `last_step`, because a resumed run repeats those steps."""
        rows = self.rows()
        kept = "".join(json.dumps(row) + "\n" for row in rows if row["step"] <= last_step)
        if not self.path.exists() or self.path.read_text("utf-8") == kept:
            return
        disk.write_atomic(self.path, kept)
