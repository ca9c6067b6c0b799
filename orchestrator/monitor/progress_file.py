"""File progress.json of a run in progress: the step, and how far each role is. `rlhf why` shows it."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from orchestrator.monitor.base import Outcome, RunInfo, Sink
from orchestrator.monitor.figures import join_within
from orchestrator.monitor.phase import Phase
from orchestrator.monitor.progress import Progress
from workers.files.durable import partial
from workers.stats import Metrics
from workers.types import Sample

SCHEMA = 1
TEXT_WIDTH = 80


class ProgressFile(Sink):
    """Writer of progress.json, which is replaced as a whole and removed when the attempt ends.

    A thread writes it, once a second if there is news: the driver waits for no disk. A file that cannot be written
    stops nothing.

    Example: `{"schema": 1, "step": 2, "step_word": "round", "num_steps": 3, "time": 1764000000.0, "phases": {"rollout":
    {"text": "1,536 of 8,192 prompts  12/s  9:14 left", "step": 2, "done": 1536, "total": 8192, "unit": "prompts",
    "per_s": 12.0, "left_s": 554.0}}}`. `step` is the one in progress, `time` is that of the newest report, in Unix
    seconds. A role whose work is not counted has only `text`.
    """

    def __init__(
        self, path: Path, clock: Callable[[], float] = time.monotonic, *, write_every_s: float | None = 1.0
    ) -> None:
        """Set where to write. `write_every_s` None: only `write` writes."""
        self._path, self._clock, self._write_every_s = path, clock, write_every_s
        self._lock = threading.Lock()
        self._progress: Progress | None = None
        self._reported: float | None = None  # time of the newest report that is not written yet
        self._closed = threading.Event()
        self._thread: threading.Thread | None = None

    def start(self, run: RunInfo) -> None:
        self._progress = Progress(run, self._clock)
        if self._write_every_s is not None:
            self._thread = threading.Thread(
                target=self._work, args=(self._write_every_s,), name="progress-file", daemon=True
            )
            self._thread.start()

    def phase(self, role: str, text: str) -> None:
        with self._changed() as progress:
            progress.phase(role, text)

    def advance(self, phase: Phase) -> None:
        with self._changed() as progress:
            progress.advance(phase)

    def step(self, step: int, metrics: Metrics, samples: Sequence[Sample]) -> None:
        with self._changed() as progress:
            progress.step(step, {}, ())

    def close(self, outcome: Outcome) -> None:
        self._closed.set()
        if self._thread is not None:
            self._thread.join()
        with suppress(OSError):
            self._path.unlink(missing_ok=True)

    def write(self) -> None:
        """Write the file if there is news."""
        with self._lock:
            if self._reported is None or self._progress is None:
                return
            body = _body(self._progress, self._reported)
            self._reported = None
        with suppress(OSError):  # not fsynced: after a power cut no step is in progress
            aside = partial(self._path)
            aside.write_text(json.dumps(body) + "\n", "utf-8")
            aside.replace(self._path)

    @contextmanager
    def _changed(self) -> Iterator[Progress]:
        assert self._progress is not None, "start comes first"
        with self._lock:
            yield self._progress
            self._reported = time.time()

    def _work(self, every_s: float) -> None:
        while not self._closed.wait(every_s):
            self.write()


def _body(progress: Progress, reported: float) -> Mapping[str, Any]:
    run, now = progress.run, progress.clock()
    return {
        "schema": SCHEMA,
        "step": progress.done + 1 if run.num_steps is None else min(progress.done + 1, run.num_steps),
        "step_word": run.step_word,
        "num_steps": run.num_steps,
        "time": reported,
        "phases": {role: _shown(progress, role, now) for role, at in progress.activities.items() if at.text},
    }


def _shown(progress: Progress, role: str, now: float) -> Mapping[str, Any]:
    phase = progress.phases.get(role)
    if phase is None:
        return {"text": progress.activities[role].text}
    left_s = phase.left_s(now)
    return {
        "text": join_within(phase.parts(now), TEXT_WIDTH),
        "step": phase.step,
        "done": phase.done,
        "total": phase.total,
        "unit": phase.unit,
        "per_s": None if phase.per_s is None else round(phase.per_s, 4),
        "left_s": None if left_s is None else round(left_s, 1),
    }
