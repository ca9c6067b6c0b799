"""Metrics file, Weights & Biases (whose failures must not affect a run), and the order of calls to sinks."""

from __future__ import annotations

import json
import struct
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from recipe_dir import RecipeDir

from orchestrator.config import load
from orchestrator.config.alarms import AlarmsConfig
from orchestrator.config.run import WandbConfig
from orchestrator.monitor import Monitor, Outcome, RunInfo, Sink, open_monitor
from orchestrator.monitor.alarms import Alarm, AlarmMonitor
from orchestrator.monitor.metrics import MetricsFile, UpdatesFile
from orchestrator.monitor.phase import Phase
from orchestrator.monitor.sinks import WandbSink
from orchestrator.rundir.directory import RunDirectory
from workers.stats import Metrics
from workers.types import Sample

DONE = Outcome(ok=True, message="done")


def info(directory: Path) -> RunInfo:
    return RunInfo(name="arith", kind="grpo", model="m", directory=directory, num_steps=3, config={"seed": 0})


class RecordingSink(Sink):
    """Sink that records its calls."""

    def __init__(self) -> None:
        self.events: list[tuple[Any, ...]] = []

    def start(self, run: RunInfo) -> None:
        self.events.append(("start", run.name))

    def phase(self, role: str, text: str) -> None:
        self.events.append(("phase", role, text))

    def advance(self, phase: Phase) -> None:
        self.events.append(("advance", phase.role, phase.done))

    def update(self, step: int, update: int, metrics: Metrics) -> None:
        self.events.append(("update", step, update, metrics))

    def step(self, step: int, metrics: Metrics, samples: Sequence[Sample]) -> None:
        self.events.append(("step", step, metrics))

    def alarm(self, alarm: Alarm) -> None:
        self.events.append(("alarm", alarm.name))

    def note(self, text: str) -> None:
        self.events.append(("note", text))

    def close(self, outcome: Outcome) -> None:
        self.events.append(("close", outcome.message))


def test_every_sink_gets_every_call_in_order(tmp_path: Path) -> None:
    sinks = [RecordingSink(), RecordingSink()]
    monitor = Monitor(sinks)
    monitor.alarm_monitor = AlarmMonitor(AlarmsConfig())
    monitor.start(info(tmp_path))
    monitor.phase("rollout", "generating")
    monitor.advance("rollout", step=1, done=2, total=8, unit="prompts")
    monitor.update(1, 1, {"loss": 0.75})
    for step in (1, 2, 3, 4, 5):
        monitor.step(step, {"objective/kl": 30.0})
    monitor.note("hello")
    monitor.close(DONE)
    assert [event[0] for event in sinks[0].events] == [
        *("start", "phase", "advance", "update", "step", "step", "step", "step", "step", "alarm", "note", "close")
    ]
    assert sinks[0].events[2:5] == [
        ("advance", "rollout", 2),
        ("update", 1, 1, {"loss": 0.75}),
        ("step", 1, {"objective/kl": 30.0}),
    ]
    assert sinks[0].events[-3] == ("alarm", "kl_budget")
    assert sinks[1].events == sinks[0].events


# ----------------------------------------------------------------------------------------------- the file


def test_a_line_per_step_with_the_names_as_given(tmp_path: Path) -> None:
    file = MetricsFile(tmp_path / "metrics.jsonl")
    file.append(1, {"loss": 0.5, "rewards/chosen": float("nan"), "kl": float("inf")})
    file.append(2, {"loss": 0.25})
    assert file.path.read_text().splitlines() == [
        '{"step": 1, "loss": 0.5, "rewards/chosen": null, "kl": null}',
        '{"step": 2, "loss": 0.25}',
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


def test_a_line_per_update_and_a_step_resumed_in_the_middle(tmp_path: Path) -> None:
    file = UpdatesFile(tmp_path / "updates.jsonl")
    for step, update in ((1, 1), (1, 2), (2, 3), (2, 4), (2, 5)):
        file.append(step, update, {"loss": 1 / update}, is_round=update > 4)
    assert file.rows()[-1] == {"step": 2, "update": 5, "round": 2, "loss": 0.2}
    file.rewind(1, 2)
    assert [row["update"] for row in file.rows()] == [1, 2, 3, 4]
    file.rewind(1, 0)
    assert [row["update"] for row in file.rows()] == [1, 2]


def test_a_metrics_file_that_cannot_be_written_stops_the_run(recipe_dir: RecipeDir) -> None:
    config = load(recipe_dir.recipe()).stages[0]
    directory = RunDirectory.create(config, "")
    monitor = open_monitor(config, directory)
    directory.metrics.mkdir()
    with pytest.raises(OSError, match="Is a directory"):
        monitor.start(info(directory.path))


def test_a_driver_that_wakes_up_after_another_took_over_writes_to_a_file_that_nobody_reads(tmp_path: Path) -> None:
    old, new = (MetricsFile(tmp_path / "metrics.jsonl") for _ in range(2))
    old.open()
    new.rewind(0)
    new.open()
    new.append(1, {"loss": 0.5})
    old.append(1, {"loss": 0.25})
    assert [row["loss"] for row in new.rows()] == [0.5]


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

    def define_metric(self, name: str, step_metric: str | None = None) -> None:
        self.events.append(("define", name, step_metric))

    def Table(self, columns: list[str], data: list[list[Any]]) -> list[dict[str, Any]]:  # noqa: N802
        return [dict(zip(columns, row, strict=True)) for row in data]

    def log(self, row: Metrics) -> None:
        self.events.append(row)

    def alert(self, title: str, text: str, level: str) -> None:
        self.events.append((title, text, level))

    def finish(self, exit_code: int) -> None:
        self.events.append(("finish", exit_code))


ALARM = Alarm(name="kl_budget", step=2, saw="KL 31", why="far", fix="raise it", action="warn", rows=1)
SAMPLE = Sample(prompt_id="p0", prompt="2+2=", completion="4", reward=1.0, version=0, finish="stop", length=2)


def report_to(fake: FakeWandb, directory: Path, config: WandbConfig | None = None, **settings: Any) -> list[str]:
    """Report a run of two steps that fails. Return the notes."""
    notes: list[str] = []
    sink = WandbSink(config or WandbConfig(), notify=notes.append, module=lambda: fake, **settings)
    report(sink, directory, Outcome(ok=False, message="failed"))
    return notes


def report(sink: WandbSink, directory: Path, outcome: Outcome) -> None:
    """Report two steps, of two updates and of one, and an alarm."""
    sink.start(info(directory))
    sink.update(1, 1, {"loss": 0.75})
    sink.update(1, 2, {"loss": 0.25})
    sink.step(1, {"loss": 0.5, "train/global_step": 2.0}, (SAMPLE,))
    sink.update(2, 3, {"loss": 0.125})
    sink.step(2, {"loss": 0.125, "train/global_step": 3.0}, ())
    sink.alarm(ALARM)
    sink.close(outcome)


def test_wandb_gets_updates_and_steps_on_one_axis(recipe_dir: RecipeDir) -> None:
    fake = FakeWandb()
    assert report_to(fake, recipe_dir.path) == []
    table = [{"step": 1, "prompt": "2+2=", "completion": "4", "reward": 1.0}]
    assert fake.events == [
        ("define", "train/global_step", None),
        ("define", "*", "train/global_step"),
        {"train/loss": 0.75, "train/global_step": 1},
        {"train/loss": 0.25, "train/global_step": 2},
        {"loss": 0.5, "train/global_step": 2.0, "step": 1, "completions": table},
        {"train/loss": 0.125, "train/global_step": 3},
        {"loss": 0.125, "train/global_step": 3.0, "step": 2},
        ("arith: kl_budget", str(ALARM), "WARN"),
        ("finish", 1),
    ]


def test_wandb_gets_no_samples_without_log_completions(recipe_dir: RecipeDir) -> None:
    fake = FakeWandb()
    report_to(fake, recipe_dir.path, WandbConfig(log_completions=False))
    assert not any("completions" in event for event in fake.events if isinstance(event, dict))


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
    notes = report_to(FakeWandb(lambda: never.wait() and None), recipe_dir.path, close_deadline_s=0.05, max_entries=1)
    assert time.monotonic() - started < 5
    assert notes == [
        "wandb did not finish in time; metrics.jsonl is complete",
        "wandb was too slow: 6 entries are missing there; metrics.jsonl has them",
    ]
    never.set()


@pytest.mark.slow
def test_the_real_wandb_writes_offline(recipe_dir: RecipeDir) -> None:
    notes: list[str] = []
    report(WandbSink(WandbConfig(project="test"), notify=notes.append), recipe_dir.path, DONE)
    assert notes == []
    (run,) = (recipe_dir.path / "wandb").glob("offline-run-*")
    (file,) = run.glob("*.wandb")
    deadline = time.monotonic() + 30  # the service of wandb may still be writing
    records = offline_records(file)
    while not any(record.HasField("exit") for record in records) and time.monotonic() < deadline:
        time.sleep(0.05)
        records = offline_records(file)
    history = [
        {item.key or "/".join(item.nested_key): json.loads(item.value_json) for item in record.history.item}
        for record in records
        if record.HasField("history")
    ]
    loss = [(row["train/global_step"], row["train/loss"]) for row in history if "train/loss" in row]
    assert loss == [(1, 0.75), (2, 0.25), (3, 0.125)]
    steps = [row for row in history if "loss" in row]
    assert [(row["step"], row["train/global_step"], row["loss"]) for row in steps] == [(1, 2, 0.5), (2, 3, 0.125)]
    table = json.loads((run / "files" / steps[0]["completions/path"]).read_text())
    assert (table["columns"], table["data"]) == (["step", "prompt", "completion", "reward"], [[1, "2+2=", "4", 1.0]])
    alerts = [(r.alert.title, r.alert.text, r.alert.level) for r in records if r.HasField("alert")]
    assert alerts == [("arith: kl_budget", str(ALARM), "WARN")]
    metrics = [record.metric for record in records if record.HasField("metric")]
    assert ("*", "train/global_step") in {(metric.glob_name, metric.step_metric) for metric in metrics}


def offline_records(path: Path) -> list[Any]:
    """Read the records of an offline run's file: the log format of LevelDB, in blocks of 32 KiB, after 7 bytes."""
    from wandb.proto.wandb_internal_pb2 import Record

    data, at, records, parts = path.read_bytes(), 7, [], b""
    while at + 7 <= len(data):
        left = 32768 - at % 32768
        if left < 7:  # the rest of a block is padding
            at += left
            continue
        _, length, kind = struct.unpack_from("<IHB", data, at)
        parts += data[at + 7 : at + 7 + length]
        at += 7 + length
        if at > len(data):  # not written completely yet
            break
        if kind in (1, 4):  # a whole record, or its last part
            records.append(Record())
            records[-1].ParseFromString(parts)
            parts = b""
    return records


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
