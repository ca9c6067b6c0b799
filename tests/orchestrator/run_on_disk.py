"""Run directory of a finished run, written with the program's own writers, for tests of its readers."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from orchestrator.config.recipe import load
from orchestrator.evaluation.answer import Answer
from orchestrator.monitor.metrics import MetricsFile
from orchestrator.rundir.directory import RunDirectory
from orchestrator.rundir.ledger import Fact, Ledger
from workers.types import Sample

RECIPE = """\
name: {name}
model: {{path: ./model}}
data: {{prompts: ./prompts.jsonl, eval_prompts: ./heldout.jsonl}}
algorithm: {{type: {kind}, max_steps: 40}}
reward: [{{type: math}}]
"""
DEVICES = {"policy": 2.0, "rollout": 1.0, "reward": 1.0}


def run_on_disk(
    root: Path,
    name: str = "grpo-a",
    *,
    kind: str = "grpo",
    steps: int = 40,
    prompt: str = "2+2=",
    answer: str = "4",
    exit: Mapping[str, Any] | None = None,
    rows: Sequence[Mapping[str, float]] | None = None,
    answers: Callable[[int], Sequence[Answer]] | None = None,
    overrides: Sequence[str] = (),
) -> RunDirectory:
    """Create the directory of a run of `steps` steps, evaluated every 10, with a rising reward and a growing KL.

    `exit`: entries of exit.json for a run that did not complete; None: it completed and its model is written.
    """
    recipe = root / f"{name}.yaml"
    recipe.write_text(RECIPE.format(name=name, kind=kind))
    config = load(recipe, [f"output_dir={root / 'runs'}", *overrides]).stages[-1]
    directory = RunDirectory.create(config, recipe.read_text())
    write_attempt(directory, steps=steps, prompt=prompt, answer=answer, exit=exit, rows=rows, answers=answers)
    return directory


def write_attempt(
    directory: RunDirectory,
    *,
    steps: int = 40,
    prompt: str = "2+2=",
    answer: str = "4",
    exit: Mapping[str, Any] | None = None,
    rows: Sequence[Mapping[str, float]] | None = None,
    answers: Callable[[int], Sequence[Answer]] | None = None,
) -> None:
    """Write what one attempt writes into an existing run directory."""
    attempt = directory.start_attempt()
    metrics = MetricsFile(directory.metrics)
    generated = (Fact.generated,) if directory.config().data.prompts is not None else ()
    with Ledger.open(directory.ledger) as ledger:
        ledger.append(Fact.attempt, attempt=attempt, step=0)
        ledger.append(Fact.placed, attempt=attempt, step=0, devices=DEVICES)
        for step in range(steps + 1):
            if step:
                for fact in (Fact.planned, *generated, Fact.scored, Fact.trained, Fact.published, Fact.committed):
                    ledger.append(fact, attempt=attempt, step=step)
            metrics.append(step, rows[step] if rows is not None else row(step, steps))
            if step % 10 == 0:
                write_samples(directory, f"eval-step-{step}", prompt, answer, step)
                if answers is not None:
                    path = directory.answers(step)
                    path.parent.mkdir(exist_ok=True)
                    pq.write_table(pa.Table.from_pylist([asdict(a) for a in answers(step)]), path)
        if exit is None:
            ledger.append(Fact.finished, attempt=attempt, step=steps)
            directory.model.mkdir()
    ending = {"cause": "completed", "message": "all steps done", "exit_code": 0, "alarms": []} | dict(exit or {})
    directory.write_exit(**{"attempt": attempt, "step": steps, **ending})


def row(step: int, steps: int) -> dict[str, float]:
    trained = {
        "reward": 0.4 + 0.5 * step / steps + 0.03 * math.sin(7 * step),
        "objective/kl": 3.0 * step / steps,
        "loss": 0.7 - 0.3 * step / steps,
        "entropy": 0.5 - 0.2 * step / steps,
        "completions/mean_length": 12.0,
        "timing/step": 1.0,
        "timing/wait_for_batch": 0.4,
        "timing/learn": 0.5,
        "timing/publish": 0.05,
        "timing/generate": 0.3,
    }
    evaluated = {"eval/reward": 0.4 + 0.5 * step / steps, "timing/evaluate": 0.2}
    return (trained if step else {}) | (evaluated if step % 10 == 0 else {})


def write_samples(directory: RunDirectory, stem: str, prompt: str, answer: str, step: int) -> None:
    samples = [
        Sample(
            prompt_id=f"heldout.jsonl:{i}",
            prompt=f"{prompt}{i}",
            completion=f"{answer} at {step}",
            reward=float(i % 2),
            version=step,
            finish="stop",
            length=4,
        )
        for i in range(4)
    ]
    path = directory.path / "samples" / f"{stem}.parquet"
    path.parent.mkdir(exist_ok=True)
    pq.write_table(pa.Table.from_pylist([asdict(s) for s in samples]), path)


def exit_alarm(name: str = "kl_budget", step: int = 31, saw: str = "KL 31 nats, over 25") -> dict[str, Any]:
    """Return an alarm as exit.json holds it."""
    alarm = {"name": name, "step": step, "saw": saw, "why": "far from its reference", "fix": "raise the coefficient"}
    body: dict[str, Any] = json.loads(json.dumps({**alarm, "action": "warn", "rows": 5}))
    return body
