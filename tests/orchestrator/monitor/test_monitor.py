"""Metrics file, Weights & Biases (whose failures must not affect a run), and the order of calls to sinks."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from recipe_dir import RecipeDir

from orchestrator.config import load
from orchestrator.config.run import WandbConfig
from orchestrator.monitor import Monitor, Outcome, RunInfo, open_monitor
from orchestrator.monitor.metrics import MetricsFile
from orchestrator.monitor.sinks import WandbSink
from orchestrator.rundir.directory import RunDirectory
from workers.types import Metrics, Sample

DONE = Outcome(ok=True, message="done")


def info(directory: Path) -> RunInfo:
    return RunInfo(name="arith", kind="grpo", model="m", directory=directory, num_steps=3, config={"seed": 0})


class RecordingSink:
    """Sink that records its calls."""

    def __init__(self) -> None:
        self.events: list[object] = []

    def start(self, run: RunInfo) -> None:
        self.events.append(("start", run.name))

    def phase(self, role: str, text: str) -> None:
        self.events.append(("phase", role, text))

    def step(self, step: int, metrics: Metrics, samples: Sequence[Sample]) -> None:
        self.events.append(("step", step, metrics))

    def note(self, text: str) -> None:
        self.events.append(("note", text))

    def close(self, outcome: Outcome) -> None:
        self.events.append(("close", outcome.message))


def test_every_sink_gets_every_call_in_order(tmp_path: Path) -> None:
    sinks = [RecordingSink(), RecordingSink()]
    monitor = Monitor(sinks)
    monitor.start(info(tmp_path))
    monitor.phase("rollout", "generating")
    monitor.step(1, {"loss": 0.5})
    monitor.note("hello")
    monitor.close(DONE)
    assert sinks[0].events == [
        ("start", "arith"),
        ("phase", "rollout", "generating"),
        ("step", 1, {"loss": 0.5}),
        ("note", "hello"),
        ("close", "done"),
    ]
    assert sinks[1].events == sinks[0].events


# ----------------------------------------------------------------------------------------------- the file


def test_a_line_per_step_with_the_names_as_given(tmp_path: Path) -> None:
    file = MetricsFile(tmp_path / "metrics.jsonl")
    file.append(1, {"loss": 0.5, "rewards/chosen": float("nan"), "kl": float("inf")})
    file.append(2, {"loss": 0.25})
    assert file.path.read_text().splitlines() == [
        '{"step": 1, "train/global_step": 1, "loss": 0.5, "rewards/chosen": null, "kl": null}',
        '{"step": 2, "train/global_step": 2, "loss": 0.25}',
    ]


def test_a_resumed_run_has_each_step_once(tmp_path: Path) -> None:
    file = MetricsFile(tmp_path / "metrics.jsonl")
    file.rewind(0)
    assert not file.path.exists()
    for step in range(5):
        file.append(step, {"loss": float(step)})
    with open(file.path, "ab") as half:
        half.write(b'{"step": 5, "los')
    assert [row["step"] for row in file.rows()] == [0, 1, 2, 3, 4]
    file.rewind(2)
    file.append(3, {"loss": 3.5})
    assert [(row["step"], row["loss"]) for row in file.rows()] == [(0, 0.0), (1, 1.0), (2, 2.0), (3, 3.5)]


def test_a_metrics_file_that_cannot_be_written_stops_the_run(recipe_dir: RecipeDir) -> None:
    config = load(recipe_dir.recipe()).stages[0]
    directory = RunDirectory.create(config, "")
    monitor = open_monitor(config, directory)
    monitor.start(info(directory.path))
    directory.metrics.mkdir()
    with pytest.raises(OSError, match="Is a directory"):
        monitor.step(1, {"loss": 1.0})


# ------------------------------------------------------------------------------------------------- wandb


class FakeWandb:
    """Fake of the wandb module and its run. `during` is called inside `init`, to fail or to hang there."""

    def __init__(self, during: Callable[[], None] = lambda: None) -> None:
        self.during = during
        self.arguments: dict[str, Any] = {}
        self.events: list[object] = []

    def init(self, **arguments: Any) -> FakeWandb:
        self.arguments = arguments
        self.during()
        return self

    def define_metric(self, name: str, step_metric: str) -> None:
        self.events.append(("define", name, step_metric))

    def log(self, row: Metrics) -> None:
        self.events.append(row)

    def finish(self, exit_code: int) -> None:
        self.events.append(("finish", exit_code))


def report_to(fake: FakeWandb, directory: Path, config: WandbConfig | None = None, **settings: Any) -> list[str]:
    """Report a run of two steps that fails. Return the notes."""
    notes: list[str] = []
    sink = WandbSink(config or WandbConfig(), notify=notes.append, module=lambda: fake, **settings)
    sink.start(info(directory))
    sink.step(1, {"loss": 0.5}, ())
    sink.step(2, {"loss": 0.25}, ())
    sink.close(Outcome(ok=False, message="failed"))
    return notes


def test_wandb_gets_every_row_with_its_step(recipe_dir: RecipeDir) -> None:
    fake = FakeWandb()
    assert report_to(fake, recipe_dir.path) == []
    assert fake.events == [
        ("define", "*", "train/global_step"),
        {"loss": 0.5, "train/global_step": 1},
        {"loss": 0.25, "train/global_step": 2},
        ("finish", 1),
    ]


def test_wandb_is_offline_without_a_key(recipe_dir: RecipeDir, monkeypatch: pytest.MonkeyPatch) -> None:
    def mode(config: WandbConfig) -> str:
        return WandbSink(config, notify=print).mode()

    assert mode(WandbConfig()) == "offline"
    (recipe_dir.path / ".netrc").write_text("machine api.wandb.ai login user password k")
    (recipe_dir.path / ".netrc").chmod(0o600)
    assert mode(WandbConfig()) == "online"
    (recipe_dir.path / ".netrc").unlink()
    monkeypatch.setenv("WANDB_API_KEY", "k")
    assert mode(WandbConfig()) == "online"
    monkeypatch.setenv("WANDB_MODE", "disabled")
    assert mode(WandbConfig()) == "disabled"
    assert mode(WandbConfig(mode="offline")) == "offline"


def test_wandb_gets_the_description_of_the_run(recipe_dir: RecipeDir, monkeypatch: pytest.MonkeyPatch) -> None:
    fake = FakeWandb()
    report_to(fake, recipe_dir.path, WandbConfig(project="mine", tags=("a", "b")))
    first = fake.arguments
    assert {k: first[k] for k in ("project", "name", "job_type", "tags", "mode", "dir", "config")} == {
        "project": "mine",
        "name": "arith",
        "job_type": "grpo",
        "tags": ["a", "b"],
        "mode": "offline",
        "dir": str(recipe_dir.path),
        "config": {"seed": 0},
    }
    assert "group" not in first
    monkeypatch.setenv("WANDB_API_KEY", "k")
    monkeypatch.setenv("WANDB_NAME", "elsewhere")
    monkeypatch.setenv("WANDB_PROJECT", "elsewhere")
    report_to(fake, recipe_dir.path)
    assert fake.arguments["id"] == first["id"]  # the next attempt continues the same wandb run
    assert fake.arguments["resume"] == "allow"
    assert not {"name", "project"} & fake.arguments.keys()  # left to the variables


def test_f35_wandb_that_raises_is_reported_once(recipe_dir: RecipeDir) -> None:
    def fail() -> None:
        raise ConnectionError("no route to host\nmore")

    assert report_to(FakeWandb(fail), recipe_dir.path) == [
        "wandb is off (ConnectionError: no route to host); metrics.jsonl is still written"
    ]


def test_f35_wandb_that_hangs_delays_nothing(recipe_dir: RecipeDir) -> None:
    never = threading.Event()
    started = time.monotonic()
    notes = report_to(FakeWandb(lambda: never.wait() and None), recipe_dir.path, close_deadline_s=0.05, max_rows=1)
    assert time.monotonic() - started < 5
    assert notes == [
        "wandb did not finish in time; metrics.jsonl is complete",
        "wandb was too slow: 2 rows are missing there; metrics.jsonl has them",
    ]
    never.set()


@pytest.mark.slow
def test_the_real_wandb_writes_offline(recipe_dir: RecipeDir) -> None:
    notes: list[str] = []
    sink = WandbSink(WandbConfig(project="test"), notify=notes.append)
    sink.start(info(recipe_dir.path))
    sink.step(1, {"loss": 0.5}, ())
    sink.close(DONE)
    assert notes == []
    assert len(list((recipe_dir.path / "wandb").glob("offline-run-*/*.wandb"))) == 1


def test_open_monitor_writes_the_file_and_the_console(
    recipe_dir: RecipeDir, capsys: pytest.CaptureFixture[str]
) -> None:
    config = load(recipe_dir.recipe()).stages[0]
    directory = RunDirectory.create(config, "")
    monitor = open_monitor(config, directory)
    monitor.start(info(directory.path))
    monitor.step(1, {"loss": 0.5})
    monitor.close(DONE)
    assert json.loads(directory.metrics.read_text())["loss"] == 0.5
    assert "step 1/3  loss 0.5000" in capsys.readouterr().out
