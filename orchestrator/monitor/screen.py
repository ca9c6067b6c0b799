"""Live screen of a run, redrawn from its progress.

╭─ arith-grpo  grpo on models/base ───────────────────────────────╮
│  step 12/40  ━━━━━━━━━━╺━━━━━━━━━━  0:53 left  1.9 s/step  0:23  │
│                                                                 │
│  rollout  ⠙  62 % busy  1,536 of 8,192 prompts  12/s  9:14 left │
│  policy      34 % busy  idle                                    │
│                                                                 │
│  reward  0.812  ▁▁▂▃▃▄▅▅▆▆▇█  from 0.41                         │
│                                                                 │
│  hcafb> → abcfh   reward 1                                      │
╰──────────────────────────────────────────────── runs/arith-grpo ─╯
"""

from __future__ import annotations

import threading
from collections.abc import Iterator

from rich.console import Console, ConsoleOptions, Group, RenderableType
from rich.panel import Panel
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from orchestrator.monitor.base import Outcome
from orchestrator.monitor.figures import (
    duration,
    headlines,
    join_within,
    number,
    one_line,
    shorten,
    sparkline,
)
from orchestrator.monitor.progress import Progress

MAX_WIDTH = 100
MAX_METRICS = 8
SPINNER, ASCII_SPINNER = "⠋⠙⠹⠸⠼⠴⠦⠧⠇⠏", "|/-\\"
SPINNER_FRAMES_PER_SECOND = 8


class Screen:
    """Renderable for `rich.live.Live`, which decides how often it is drawn."""

    def __init__(self, progress: Progress, lock: threading.Lock) -> None:
        self.progress = progress
        self.outcome: Outcome | None = None
        self._lock = lock

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> Iterator[RenderableType]:
        width = min(options.max_width, MAX_WIDTH)
        ascii_only = options.ascii_only
        with self._lock:
            yield Panel(
                Group(*self._parts(width - 6, ascii_only)),
                title=self._title(),
                title_align="left",
                subtitle=Text(str(self.progress.run.directory), style="dim"),
                subtitle_align="right",
                border_style=self._border(),
                padding=(0, 2),
                width=width,
            )

    def _border(self) -> str:
        if self.outcome is None:
            return "cyan"
        return "green" if self.outcome.ok else "red"

    def _title(self) -> Text:
        run = self.progress.run
        stage = f"  stage {run.stage}/{run.num_stages}" if run.num_stages > 1 else ""
        attempt = f"  attempt {run.attempt}" if run.attempt > 1 else ""
        return Text.assemble((run.name, "bold"), f"  {run.kind} on {run.model}{stage}{attempt}")

    def _parts(self, width: int, ascii_only: bool) -> Iterator[RenderableType]:
        yield self._bar(width)
        yield Text()
        yield self._roles(width, ascii_only)
        if self.progress.metrics:
            yield Text()
            yield self._metrics(width, ascii_only)
        if self.progress.sample is not None:
            yield Text()
            yield self._sample(width, ascii_only)

    def _bar(self, width: int) -> RenderableType:
        progress, run = self.progress, self.progress.run
        count = f"{run.step_word} {progress.done}" + (f"/{run.num_steps}" if run.num_steps else "")
        times = []
        if progress.remaining_s is not None and self.outcome is None:
            times.append(f"{duration(progress.remaining_s)} left")
        if progress.seconds_per_step is not None:
            times.append(f"{duration(progress.seconds_per_step)}/{run.step_word}")
        times.append(duration(progress.elapsed_s))
        times_text = join_within(times, width - len(count) - 16)
        row = Table.grid(padding=(0, 2, 0, 0))
        length = max(8, width - len(count) - len(times_text) - 4)
        bar = ProgressBar(
            total=run.num_steps,
            completed=progress.done,
            width=length,
            pulse=run.num_steps is None and self.outcome is None,
            animation_time=progress.clock(),
        )
        row.add_row(Text(count, style="bold"), bar, Text(times_text, style="cyan"))
        return row

    def _roles(self, width: int, ascii_only: bool) -> RenderableType:
        """Draw each role with its busy share and its work: how much is done, or what it is and for how long."""
        table = Table.grid(padding=(0, 2, 0, 0))
        for justify in ("left", "left", "right", "left"):
            table.add_column(justify=justify, no_wrap=True)
        now, ended = self.progress.clock(), self.outcome is not None
        frames = ASCII_SPINNER if ascii_only else SPINNER
        for role, activity in self.progress.activities.items():
            has_share = role in self.progress.run.roles and bool(self.progress.metrics)
            share = Text(f"{100 * self.progress.busy_share(role):.0f} % busy" if has_share else "", style="dim")
            if ended or not activity.text:
                table.add_row(Text(role, style="dim"), " ", share, Text("" if ended else "idle", style="dim"))
                continue
            spinner = Text(frames[int(now * SPINNER_FRAMES_PER_SECOND) % len(frames)], style="cyan")
            if phase := self.progress.phases.get(role):
                text = Text(join_within(phase.parts(now), max(8, width - 28)))
            else:
                elapsed = (f"  {duration(now - activity.since)}", "dim")
                text = Text.assemble(shorten(one_line(activity.text), max(8, width - 38)), elapsed)
            table.add_row(Text(role, style="bold"), spinner, share, text)
        return table

    def _metrics(self, width: int, ascii_only: bool) -> RenderableType:
        curve_width = max(0, min(40, width - 42))
        table = Table.grid(padding=(0, 2, 0, 0))
        table.add_column()
        table.add_column(justify="right")
        if curve_width:
            table.add_column(width=curve_width)
        for headline in headlines(self.progress.metrics, MAX_METRICS):
            curve = list(self.progress.curves[headline.name])
            value = Text(number(curve[-1], share=headline.share), style="bold")
            start = f"from {number(curve[0], share=headline.share)}" if len(curve) > 1 else ""
            cells = [Text(headline.label), value, Text(start, style="dim")]
            if curve_width:
                line = sparkline(curve, curve_width, ascii_only=ascii_only)
                cells.insert(2, Text(line, style="cyan", no_wrap=True))
            table.add_row(*cells)
        return table

    def _sample(self, width: int, ascii_only: bool) -> RenderableType:
        """Draw the completion with the highest reward of the last step, on at most two lines."""
        sample = self.progress.sample
        assert sample is not None
        arrow = "->" if ascii_only else "→"
        prompt, completion = one_line(sample.prompt), one_line(sample.completion)
        room = 2 * width - 22
        prompt = prompt if len(prompt) <= room // 2 else ("..." if ascii_only else "…") + prompt[-room // 2 + 3 :]
        return Text.assemble(
            (prompt, "dim"),
            f" {arrow} ",
            (shorten(completion, room - len(prompt)), "bold"),
            (f"   reward {number(sample.reward)}", "cyan"),
        )
