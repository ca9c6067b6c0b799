"""Sinks besides the console: the metrics file, which must work, and Weights & Biases, which may fail."""

from __future__ import annotations

import netrc
import os
import queue
import secrets
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal, TypeAlias

from orchestrator.config.run import WandbConfig
from orchestrator.monitor.alarms import Alarm
from orchestrator.monitor.base import Outcome, RunInfo, Sink
from orchestrator.monitor.metrics import MetricsFile, UpdatesFile
from workers.stats import Metrics
from workers.types import Sample

Mode = Literal["online", "offline", "disabled"]
X_AXIS = "train/global_step"  # optimiser updates of the whole run, as in TRL
SAMPLE_COLUMNS = ("step", "prompt", "completion", "reward")

Entry: TypeAlias = Callable[[Any, Any], None]
"""Function that logs something, given the module `wandb` and its run."""


class JsonlSink(Sink):
    """Writer of metrics.jsonl and updates.jsonl in the run directory. A failed write stops the run: no row is lost."""

    def __init__(self, file: MetricsFile, updates: UpdatesFile) -> None:
        self._file, self._updates = file, updates
        self._is_round = False

    def start(self, run: RunInfo) -> None:
        self._is_round = run.step_word == "round"
        self._file.open()
        self._updates.open()

    def update(self, step: int, update: int, metrics: Metrics) -> None:
        self._updates.append(step, update, metrics, is_round=self._is_round)

    def step(self, step: int, metrics: Metrics, samples: Sequence[Sample]) -> None:
        self._file.append(step, metrics)

    def close(self, outcome: Outcome) -> None:
        self._file.close()
        self._updates.close()


class WandbSink(Sink):
    """Weights & Biases, in its own thread: the driver only puts entries into a queue.

        an optimiser update    `train/NAME`, the names that TRL has there
        a step                 the names of metrics.jsonl, at the step's last update
        samples of a step      table `completions`, as TRL's log_completions
        an alarm that begins   an alert

    The x-axis of all metrics is `train/global_step`, the number of optimiser updates. The sink neither stops nor slows
    a run. An error is reported once, and later entries are discarded. Entries that do not fit into the queue are
    dropped and counted. The complete record is metrics.jsonl and updates.jsonl.
    """

    def __init__(
        self,
        config: WandbConfig,
        *,
        notify: Callable[[str], None],
        module: Callable[[], Any] | None = None,
        max_entries: int = 10_000,
        init_deadline_s: float = 60.0,
        close_deadline_s: float = 15.0,
    ) -> None:
        self._config, self._notify, self._module = config, notify, module or _import_wandb
        self._init_deadline_s, self._close_deadline_s = init_deadline_s, close_deadline_s
        self._entries: queue.Queue[Entry | None] = queue.Queue(max_entries)
        self._thread: threading.Thread | None = None
        self._num_dropped = 0
        self._exit_code = 0
        self._name = ""  # of the run

    def start(self, run: RunInfo) -> None:
        self._name = run.name
        self._thread = threading.Thread(target=self._work, args=(run,), name="wandb-sink", daemon=True)
        self._thread.start()

    def update(self, step: int, update: int, metrics: Metrics) -> None:
        row = {f"train/{name}": value for name, value in metrics.items()} | {X_AXIS: update}
        self._put(lambda wandb, run: run.log(row))

    def step(self, step: int, metrics: Metrics, samples: Sequence[Sample]) -> None:
        def log(wandb: Any, run: Any) -> None:
            row: dict[str, Any] = {**metrics, "step": step}
            if samples and self._config.log_completions:
                data = [[step, sample.prompt, sample.completion, sample.reward] for sample in samples]
                row["completions"] = wandb.Table(columns=list(SAMPLE_COLUMNS), data=data)
            run.log(row)

        self._put(log)

    def alarm(self, alarm: Alarm) -> None:
        level = "WARN" if alarm.action == "warn" else "ERROR"
        title = f"{self._name}: {alarm.name}"
        self._put(lambda wandb, run: run.alert(title=title, text=str(alarm), level=level))

    def close(self, outcome: Outcome) -> None:
        if self._thread is None:
            return
        self._exit_code = 0 if outcome.ok else 1
        self._put(None)
        self._thread.join(self._close_deadline_s)
        if self._thread.is_alive():
            self._notify("wandb did not finish in time; metrics.jsonl is complete")
        if self._num_dropped:
            self._notify(f"wandb was too slow: {self._num_dropped} entries are missing there; metrics.jsonl has them")

    def _put(self, entry: Entry | None) -> None:
        try:
            self._entries.put_nowait(entry)
        except queue.Full:
            self._num_dropped += 1

    def _work(self, run: RunInfo) -> None:
        try:
            wandb = self._module()
            reporter = wandb.init(**self._init_arguments(run))
            reporter.define_metric(X_AXIS)
            reporter.define_metric("*", step_metric=X_AXIS)
            while (entry := self._entries.get()) is not None:
                entry(wandb, reporter)
            reporter.finish(exit_code=self._exit_code)
        except BaseException as error:  # a service that is down, or a library that calls sys.exit
            lines = str(error).strip().splitlines() or [""]
            self._notify(f"wandb is off ({type(error).__name__}: {lines[0]}); metrics.jsonl is still written")
            while self._entries.get() is not None:
                pass  # discard entries until the run closes the sink

    def _init_arguments(self, run: RunInfo) -> dict[str, Any]:
        """Build the arguments of `wandb.init`. Leave to wandb what a WANDB_* variable sets and the recipe does not."""
        config, mode = self._config, self.mode()
        by_variable = {
            "WANDB_PROJECT": ("project", config.project or "rlhf"),
            "WANDB_NAME": ("name", run.name),
            "WANDB_RUN_GROUP": ("group", config.group),
            "WANDB_RUN_ID": ("id", _stable_id(run.directory)),
            "WANDB_RESUME": ("resume", "allow" if mode == "online" else None),
            "WANDB_JOB_TYPE": ("job_type", run.kind),
            "WANDB_TAGS": ("tags", list(config.tags) or None),
            "WANDB_DIR": ("dir", str(run.directory)),
        }
        from_recipe = {"project": config.project, "group": config.group, "tags": config.tags}
        arguments = {
            key: value
            for variable, (key, value) in by_variable.items()
            if value is not None and (variable not in os.environ or from_recipe.get(key))
        }
        if config.entity:
            arguments["entity"] = config.entity
        settings = {"init_timeout": self._init_deadline_s, "silent": True, "console": "off"}
        return {**arguments, "mode": mode, "config": dict(run.config), "settings": settings}

    def mode(self) -> Mode:
        """Return the mode of the recipe, else of WANDB_MODE, else "online" if there is an API key."""
        if self._config.mode is not None:
            return self._config.mode
        match os.environ.get("WANDB_MODE"):
            case "online":
                return "online"
            case "offline" | "dryrun":
                return "offline"
            case "disabled":
                return "disabled"
            case _:
                return "online" if _has_key() else "offline"


def _import_wandb() -> Any:
    import wandb

    return wandb


def _has_key() -> bool:
    if os.environ.get("WANDB_API_KEY"):
        return True
    host = os.environ.get("WANDB_BASE_URL", "https://api.wandb.ai").split("://")[-1].split("/")[0]
    try:
        return netrc.netrc().authenticators(host) is not None
    except (OSError, netrc.NetrcParseError):
        return False


def _stable_id(directory: Path) -> str:
    """Return the wandb id of a run, the same for all its attempts: random, stored in the run directory."""
    path = directory / ".wandb-id"
    if not path.exists():
        path.write_text(secrets.token_hex(4), "utf-8")
    return path.read_text("utf-8").strip()
