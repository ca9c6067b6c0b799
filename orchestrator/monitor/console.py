"""Console of a run: a live screen on a terminal, lines anywhere else: one per step, and a few within a long step."""

from __future__ import annotations

import io
import re
import sys
import threading
import time
from collections.abc import Callable, Sequence
from typing import TextIO, cast

from rich.console import Console
from rich.live import Live

from orchestrator.monitor.alarms import Alarm
from orchestrator.monitor.base import Outcome, RunInfo, Sink
from orchestrator.monitor.figures import duration, headlines, join_within, number, shorten
from orchestrator.monitor.phase import Phase
from orchestrator.monitor.progress import Progress
from orchestrator.monitor.screen import Screen
from orchestrator.terminal import Forgiving, is_live
from workers.stats import Metrics
from workers.types import Sample

LINE_WIDTH = 100
REDRAWS_PER_SECOND = 4.0
WITHIN_STEP_S = 60.0  # seconds between two lines of PlainConsole within a step, at least
PROGRESS_LINE = re.compile(r"(?:step|round) +\d+(?:/\d+)?  \S.*")


def open_console(stream: TextIO | None = None) -> Sink:
    """Open a live console on a terminal, a plain one on anything else."""
    target = stream or sys.stdout or io.StringIO()  # sys.stdout is None if it was closed before Python started
    return LiveConsole(target) if is_live(target) else PlainConsole(target)


def newest_progress(log: str) -> str | None:
    """Return the newest line that tells how far a run is, from the output of `PlainConsole`; None if there is none."""
    return next((line for line in reversed(log.splitlines()) if PROGRESS_LINE.fullmatch(line)), None)


class PlainConsole(Sink):
    """Console of lines of at most 100 columns, without colour: one per step, and some within a step of minutes.

    step  12/40  reward 0.812  kl 0.0123  length 5.2  loss 0.0312  1.9 s/step  0:53 left
    round  2/3  rollout 1,536 of 8,192 prompts  12/s  9:14 left  reward 1,408 of 8,192 prompts
    """

    def __init__(self, stream: TextIO, clock: Callable[[], float] = time.monotonic) -> None:
        self._out, self._clock = Forgiving(stream), clock
        self._progress: Progress | None = None
        self._told = clock()  # when the newest line about progress was printed

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

    def advance(self, phase: Phase) -> None:
        """Print how far each role is, unless a line was printed, or the phase began, less than WITHIN_STEP_S ago."""
        progress = self._progress
        assert progress is not None, "start comes first"
        progress.advance(phase)
        now = self._clock()
        if now - max(self._told, phase.began) < WITHIN_STEP_S:
            return
        self._told = now
        parts = list[str]()
        for shown in progress.phases.values() if progress.phases else (phase,):
            first, *rest = shown.parts(now)
            parts += [f"{shown.role} {first}", *rest]
        head = self._head(progress.run, phase.step)
        self._print(f"{head}  {join_within(parts, LINE_WIDTH - len(head) - 2)}")

    def step(self, step: int, metrics: Metrics, samples: Sequence[Sample]) -> None:
        progress = self._progress
        assert progress is not None, "start comes first"
        progress.step(step, metrics, samples)
        self._told = self._clock()
        timings = []
        if progress.seconds_per_step is not None:
            timings.append(f"{duration(progress.seconds_per_step)}/{progress.run.step_word}")
        if progress.remaining_s is not None:
            timings.append(f"{duration(progress.remaining_s)} left")
        head, tail = self._head(progress.run, step), "  ".join(timings)
        shown = [f"{h.label} {number(metrics[h.name], share=h.share)}" for h in headlines(metrics, 8)]
        middle = join_within(shown, LINE_WIDTH - len(head) - len(tail) - 4)
        self._print("  ".join(part for part in (head, middle, tail) if part))

    def _head(self, run: RunInfo, step: int) -> str:
        total = run.num_steps
        return f"{run.step_word} " + (f"{step:>{len(str(total))}}/{total}" if total else str(step))

    def alarm(self, alarm: Alarm) -> None:
        self.note(str(alarm))

    def note(self, text: str) -> None:
        self._print(text)

    def close(self, outcome: Outcome) -> None:
        for line in (outcome.message, *outcome.hints):
            self._print(line)

    def _print(self, text: str) -> None:
        self._out.write(text + "\n")
        self._out.flush()


class LiveConsole(Sink):
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

    def advance(self, phase: Phase) -> None:
        if self._screen is not None:
            with self._lock:
                self._screen.progress.advance(phase)

    def step(self, step: int, metrics: Metrics, samples: Sequence[Sample]) -> None:
        if self._screen is not None:
            with self._lock:
                self._screen.progress.step(step, metrics, samples)

    def alarm(self, alarm: Alarm) -> None:
        self.note(str(alarm))

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
