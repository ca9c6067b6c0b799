"""Consoles: the lines, the screen, and terminals and pipes that must not stop a run."""

from __future__ import annotations

import io
import os
import pty
import subprocess
import sys
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console

from orchestrator.monitor import Monitor, Outcome, RunInfo
from orchestrator.monitor.console import LINE_WIDTH, LiveConsole, PlainConsole, newest_progress, open_console
from orchestrator.monitor.figures import duration, join_within, number, one_line, sparkline
from orchestrator.monitor.phase import Phase
from orchestrator.monitor.progress import Progress
from orchestrator.monitor.screen import Screen
from workers.types import Sample

ROOT = Path(__file__).parents[3]
RUN = RunInfo(
    name="arith",
    kind="grpo",
    model="models/base",
    directory=Path("runs/arith"),
    num_steps=12,
    roles=("rollout", "policy"),
)
METRICS = {
    "loss": 0.03125,
    "reward": 0.8125,
    "kl": 0.0123,
    "completions/mean_length": 5.25,
    "eval/reward": 0.75,
    "frac_reward_zero_std": 0.125,
    "entropy": 1.2,
    "grad_norm": 0.5,
    "something/else": 1.0,
}
SAMPLE = Sample(
    prompt_id="p:1", prompt="hcafb>", completion="abc\n\x1b[2Jfh", reward=1.0, version=3, finish="stop", length=6
)


class Clock:
    """Fake clock that a test advances."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def test_one_line_per_step() -> None:
    out, clock = io.StringIO(), Clock()
    console = PlainConsole(out, clock)
    console.start(replace(RUN, stage=2, num_stages=2))
    console.phase("driver", "starting Ray")
    console.phase("rollout", "generating")
    for step in (1, 2):
        clock.now += 2.0
        console.step(step, METRICS, (SAMPLE,))
    console.note("a note")
    console.close(Outcome(ok=True, message="done: 12 steps", hints=("model: runs/arith/model",)))
    assert out.getvalue().splitlines() == [
        "stage 2/2  arith: grpo on models/base, 12 steps, in runs/arith",
        "starting Ray",
        "step  1/12  eval reward 0.7500  reward 0.8125  kl 0.0123  entropy 1.20  2.0 s/step  0:22 left",
        "step  2/12  eval reward 0.7500  reward 0.8125  kl 0.0123  entropy 1.20  2.0 s/step  0:20 left",
        "a note",
        "done: 12 steps",
        "model: runs/arith/model",
    ]


ROUND = replace(RUN, kind="iter_dpo", num_steps=3, step_word="round", roles=("rollout", "reward", "policy"))


def lines_within(*chunk_s: float, load_s: float = 0.0) -> list[str]:
    """Return the lines of two rounds of 8 chunks of 1,024 prompts each, which take these seconds."""
    out, clock = io.StringIO(), Clock()
    monitor = Monitor([PlainConsole(out, clock)], clock)
    monitor.start(ROUND)
    clock.now += load_s
    for step, seconds in enumerate(chunk_s, start=1):
        monitor.phase("rollout", "generating")
        for chunk in range(1, 9):
            clock.now += seconds
            monitor.advance("rollout", step=step, done=1024 * chunk, total=8192, unit="prompts")
            monitor.advance("reward", step=step, done=1024 * (chunk - 1), total=8192, unit="prompts")
        monitor.step(step, {"reward": 0.5})
    return out.getvalue().splitlines()[1:]


def test_a_long_round_is_not_silent_and_a_short_one_has_one_line() -> None:
    assert lines_within(40.0, 7.0) == [
        "round 1/3  rollout 2,048 of 8,192 prompts  25.6/s  4:00 left  reward 0 of 8,192 prompts",
        "round 1/3  rollout 4,096 of 8,192 prompts  25.6/s  2:40 left  reward 2,048 of 8,192 prompts  25.6/s",
        "round 1/3  rollout 6,144 of 8,192 prompts  25.6/s  1:20 left  reward 4,096 of 8,192 prompts  25.6/s",
        "round 1/3  reward 6,144 of 8,192 prompts  25.6/s  0:40 left",
        "round 1/3  reward 0.5000  5:20/round  10:40 left",
        "round 2/3  reward 0.5000  3:08/round  3:08 left",
    ]


def test_loading_is_not_a_long_step() -> None:
    assert lines_within(7.0, load_s=500.0) == ["round 1/3  reward 0.5000  9:16/round  18:32 left"]


def test_the_newest_progress_in_a_log() -> None:
    lines = lines_within(40.0, 7.0)
    log = ["arith: iter_dpo on models/base, 3 rounds, in runs/arith", *lines, "alarm kl_budget at step 2: x", ""]
    assert newest_progress("\n".join(log)) == lines[-1]
    assert newest_progress("\n".join(log[:3])) == lines[1]
    assert newest_progress("step 1 is sampled again: damaged\nstarting Ray\n") is None


@pytest.mark.parametrize("num_steps", [None, 3, 10**9])
def test_lines_are_never_too_long(num_steps: int | None) -> None:
    out = io.StringIO()
    console = PlainConsole(out)
    console.start(replace(RUN, num_steps=num_steps))
    console.step(2, {name: value * 123456.789 for name, value in METRICS.items()}, ())
    assert max(len(line) for line in out.getvalue().splitlines()[1:]) <= LINE_WIDTH


def screen(width: int, encoding: str = "utf-8", outcome: Outcome | None = None) -> str:
    clock = Clock()
    drawn = Screen(Progress(RUN, clock), threading.Lock())
    drawn.outcome = outcome
    drawn.progress.step(0, {"eval/reward": 0.25}, ())
    for step in (1, 2, 3):
        drawn.progress.phase("rollout", "generating 16 × 8")
        clock.now += 3.0
        drawn.progress.phase("rollout", "")
        drawn.progress.phase("policy", "learning")
        clock.now += 1.0
        drawn.progress.step(step, {"reward": 0.25 * step, "kl": 0.01}, (SAMPLE,))
    return shown(drawn, width, encoding)


def shown(drawn: Screen, width: int, encoding: str = "utf-8") -> str:
    file = io.TextIOWrapper(io.BytesIO(), encoding=encoding, errors="replace")
    console = Console(file=file, width=width, force_terminal=True, color_system=None, legacy_windows=False)
    console.print(drawn)
    file.seek(0)
    return file.read()


def test_the_screen() -> None:
    text = screen(80)
    for expected in (
        "arith  grpo on models/base",
        "step 3/12",
        "0:36 left  4.0 s/step  0:12",
        "rollout     75 % busy  idle",
        "75 % busy  learning  1.0 s",
        "eval reward  0.2500",
        "reward       0.7500  ▁▅█",
        "from 0.2500",
        "hcafb> → abc⏎·[2Jfh   reward 1",
        "runs/arith",
    ):
        assert expected in text
    assert "\x1b" not in text  # a completion cannot move the cursor
    assert {len(line) for line in text.splitlines()} == {80}


@pytest.mark.parametrize("width", [20, 40, 60, 80, 200])
def test_the_screen_fits_any_terminal(width: int) -> None:
    assert {len(line) for line in screen(width).splitlines()} == {min(width, 100)}


def test_the_screen_in_ascii() -> None:
    text = screen(80, encoding="ascii")
    assert text.isascii()
    assert "_=#" in text


def test_the_screen_shows_how_much_of_a_phase_is_done() -> None:
    clock = Clock()
    drawn = Screen(Progress(RUN, clock), threading.Lock())
    drawn.progress.phase("rollout", "generating")
    clock.now += 128
    phase = Phase(role="rollout", step=2, unit="prompts", done=1536, total=8192, began=100.0, moved=228.0, moves=6)
    drawn.progress.advance(phase)
    assert "1,536 of 8,192 prompts  12/s  9:15 left" in shown(drawn, 80)
    drawn.progress.advance(replace(phase, done=8192))
    assert "prompts" not in shown(drawn, 80)


def test_the_last_screen_shows_no_remaining_time() -> None:
    text = screen(80, outcome=Outcome(ok=True, message="done"))
    assert "left" not in text
    assert "idle" not in text


# ------------------------------------------------------------------------------------ terminals and pipes


DEMO = """
import sys
sys.path.insert(0, "tests/orchestrator/monitor")
from test_console import METRICS, RUN, SAMPLE
from orchestrator.monitor import Outcome
from orchestrator.monitor.console import open_console
console = open_console()
console.start(RUN)
for step in range(1, 200):
    console.phase("policy", "learning")
    console.step(step, METRICS, (SAMPLE,))
console.note("a note")
console.close(Outcome(ok=True, message="done"))
print("still running", file=sys.stderr)
"""


def demo(stdout: int, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", DEMO],
        cwd=ROOT,
        stdout=stdout,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, **environment},
        timeout=60,
        check=False,
    )


def test_b62_nobody_reads_the_pipe() -> None:
    """Check that `rlhf run … | head` continues and succeeds."""
    reader, writer = os.pipe()
    os.close(reader)
    done = demo(writer)
    os.close(writer)
    assert (done.returncode, done.stderr) == (0, "still running\n")


def test_b62_stdout_is_closed() -> None:
    command = f'{sys.executable} -c "$DEMO" >&-'
    done = subprocess.run(
        command, shell=True, cwd=ROOT, env={**os.environ, "DEMO": DEMO}, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (0, "still running\n")


def test_b62_an_ascii_only_terminal() -> None:
    environment = {"LC_ALL": "C", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0", "TERM": "xterm", "CI": ""}
    ours, theirs = pty.openpty()
    done = demo(theirs, **environment)
    os.close(theirs)
    written = _drain(ours)
    assert (done.returncode, done.stderr) == (0, "still running\n")
    assert b"step 199/12" in written
    assert written.isascii()


def test_b62_the_terminal_goes_away() -> None:
    ours, theirs = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-c", DEMO],
        cwd=ROOT,
        stdout=theirs,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "TERM": "xterm", "CI": ""},
    )
    os.close(theirs)
    os.close(ours)
    _, stderr = process.communicate(timeout=60)
    assert (process.returncode, stderr) == (0, "still running\n")


def _drain(descriptor: int) -> bytes:
    chunks = []
    try:
        while chunk := os.read(descriptor, 65536):
            chunks.append(chunk)
    except OSError:  # the other end is closed
        pass
    os.close(descriptor)
    return b"".join(chunks)


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize(
    ("variables", "kind"),
    [
        ({"TERM": "xterm"}, LiveConsole),
        ({"TERM": "dumb"}, PlainConsole),
        ({"TERM": "xterm", "CI": "true"}, PlainConsole),
    ],
)
def test_live_only_where_a_person_watches(
    variables: dict[str, str], kind: type, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("CI", raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert isinstance(open_console(Terminal()), kind)
    assert isinstance(open_console(io.StringIO()), PlainConsole)


# ------------------------------------------------------------------------------------------------ figures


def test_figures() -> None:
    values = (0.0, 0.00001, 0.0123456, 0.5, 1.0, 3.14159, 31.4159, 314.159, 31415.9, 1e7, -0.02, float("nan"))
    assert [number(v) for v in values] == [
        "0", "1e-05", "0.0123", "0.5000", "1", "3.14", "31.4", "314", "31416", "1e+07", "-0.0200", "nan",
    ]  # fmt: skip
    assert number(0.125, share=True) == "12.5 %"
    assert [duration(s) for s in (0.04, 9.94, 59.7, 3599, 3601, 172800)] == [
        "0.0 s", "9.9 s", "1:00", "59:59", "1:00:01", "2 d 0:00",
    ]  # fmt: skip
    assert join_within(["aa", "bb", "cc"], 6) == "aa  bb"
    assert one_line("a\tb\r\n\x07") == "a b·⏎·"


@pytest.mark.parametrize(
    ("values", "width", "line"),
    [
        ([], 5, ""),
        ([1.0], 5, "▄"),
        ([2.0, 2.0, 2.0], 5, "▄▄▄"),
        ([0, 1, 2, 3, 4, 5, 6, 7], 8, "▁▂▃▄▅▆▇█"),
        ([0, 0, 7, 7], 2, "▁█"),  # two values share a column, by their mean
        ([float("nan"), 0, float("inf"), 1], 5, "▁█"),
        ([1.0, 2.0], 0, ""),
    ],
)
def test_sparklines(values: list[float], width: int, line: str) -> None:
    assert sparkline(values, width) == line


def test_sparklines_of_many_values_fill_their_width() -> None:
    draw: Callable[[int], str] = lambda n: sparkline([float(i) for i in range(n)], 30)  # noqa: E731
    assert {len(draw(n)) for n in range(30, 500)} == {30}
