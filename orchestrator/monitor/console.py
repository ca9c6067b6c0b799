"""Console of a run: a live screen on a terminal, one line per step anywhere else."""

from __future__ import annotations

import io
import sys
import threading
import time
from collections.abc import Callable, Sequence
from typing import TextIO, cast

from rich.console import Console
from rich.live import Live

from orchestrator.monitor.base import Outcome, RunInfo, Sink
from orchestrator.monitor.figures import duration, headlines, join_within, number, shorten
from orchestrator.monitor.progress import Progress
from orchestrator.monitor.screen import Screen
from orchestrator.terminal import Forgiving, is_live
from workers.types import Metrics, Sample

LINE_WIDTH = 100
REDRAWS_PER_SECOND = 4.0


def open_console(stream: TextIO | None = None) -> Sink:
    """Open a live console on a terminal, a plain one on anything else."""
    target = stream or sys.stdout or io.StringIO()  # sys.stdout is None if it was closed before Python started
    return LiveConsole(target) if is_live(target) else PlainConsole(target)


class PlainConsole:
    """Console with one line per step, at most 100 columns, without colour:

    step  12/40  reward 0.812  kl 0.0123  length 5.2  loss 0.0312  1.9 s/step  0:53 left
    """

    def __init__(self, stream: TextIO, clock: Callable[[], float] = time.monotonic) -> None:
        self._out, self._clock = Forgiving(stream), clock
        self._progress: Progress | None = None

    def start(self, run: RunInfo) -> None:
        self._progress = Progress(run, self._clock)
        stage = f"stage {run.stage}/{run.num_stages}  " if run.num_stages > 1 else ""
        steps = f"{run.num_steps} {run.step_word}s" if run.num_steps else ""
        resumed = f"attempt {run.attempt}, after {run.step_word} {run.first_step}" if run.first_step else ""
        facts = (part for part in (f"{run.kind} on {run.model}", steps, resumed, f"in {run.directory}") if part)
        self._print(f"{stage}{run.name}: {', '.join(facts)}")

    def phase(self, role: str, text: str) -> None:
        """Print the driver's own phases, such as "starting Ray". Phases of roles change several times a second."""
        if self._progress is not None and role not in self._progress.run.roles and text:
            self._print(text)

    def step(self, step: int, metrics: Metrics, samples: Sequence[Sample]) -> None:
        progress = self._progress
        assert progress is not None, "start comes first"
        progress.step(step, metrics, samples)
        total = progress.run.num_steps
        count = f"{step:>{len(str(total))}}/{total}" if total else str(step)
        timings = []
        if progress.seconds_per_step is not None:
            timings.append(f"{duration(progress.seconds_per_step)}/{progress.run.step_word}")
        if progress.remaining_s is not None:
            timings.append(f"{duration(progress.remaining_s)} left")
        head, tail = f"{progress.run.step_word} {count}", "  ".join(timings)
        shown = [f"{h.label} {number(metrics[h.name], share=h.share)}" for h in headlines(metrics, 8)]
        middle = join_within(shown, LINE_WIDTH - len(head) - len(tail) - 4)
        self._print("  ".join(part for part in (head, middle, tail) if part))

    def note(self, text: str) -> None:
        self._print(text)

    def close(self, outcome: Outcome) -> None:
        for line in (outcome.message, *outcome.hints):
            self._print(line)

    def _print(self, text: str) -> None:
        self._out.write(text + "\n")
        self._out.flush()


class LiveConsole:
    """Screen redrawn in place. Notes and other output scroll above it."""

    def __init__(self, stream: TextIO, clock: Callable[[], float] = time.monotonic) -> None:
        self._console = Console(file=cast(TextIO, Forgiving(stream)), force_terminal=True, highlight=False)
        self._clock = clock
        self._lock = threading.Lock()
        self._screen: Screen | None = None
        self._live: Live | None = None

    def start(self, run: RunInfo) -> None:
        self._screen = screen = Screen(Progress(run, self._clock), self._lock)
        self._live = Live(
            screen,
            console=self._console,
            refresh_per_second=REDRAWS_PER_SECOND,
            vertical_overflow="crop",
        )
        self._live.start()

    def phase(self, role: str, text: str) -> None:
        if self._screen is not None:
            with self._lock:
                self._screen.progress.phase(role, text)

    def step(self, step: int, metrics: Metrics, samples: Sequence[Sample]) -> None:
        if self._screen is not None:
            with self._lock:
                self._screen.progress.step(step, metrics, samples)

    def note(self, text: str) -> None:
        self._console.print(shorten(text, 500), markup=False, style="yellow")

    def close(self, outcome: Outcome) -> None:
        if self._live is not None and self._screen is not None:
            with self._lock:
                self._screen.outcome = outcome
            self._live.stop()
            self._live = None
        self._console.print(outcome.message, markup=False, style="bold green" if outcome.ok else "bold red")
        for hint in outcome.hints:
            self._console.print(f"  {hint}", markup=False)
