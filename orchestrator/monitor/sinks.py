"""Sinks besides the console: the metrics file, which must work, and Weights & Biases, which may fail."""

from __future__ import annotations

import netrc
import os
import queue
import secrets
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

from orchestrator.config.run import WandbConfig
from orchestrator.monitor.base import Outcome, RunInfo
from orchestrator.monitor.metrics import MetricsFile
from workers.types import Metrics, Sample

Mode = Literal["online", "offline", "disabled"]


class JsonlSink:
    """Writer of metrics.jsonl in the run directory. A failed write stops the run: no row is lost silently."""

    def __init__(self, file: MetricsFile) -> None:
        self._file = file

    def start(self, run: RunInfo) -> None:
        pass

    def phase(self, role: str, text: str) -> None:
        pass

    def step(self, step: int, metrics: Metrics, samples: Sequence[Sample]) -> None:
        self._file.append(step, metrics)

    def note(self, text: str) -> None:
        pass

    def close(self, outcome: Outcome) -> None:
        pass


class WandbSink:
    """Weights & Biases, in its own thread: the driver only puts rows into a queue.

    The sink neither stops nor slows a run. An error is reported once, and later rows are discarded. Rows that do not
    fit into the queue are dropped and counted. The complete record is metrics.jsonl.
    """

    def __init__(
        self,
        config: WandbConfig,
        *,
        notify: Callable[[str], None],
        module: Callable[[], Any] | None = None,
        max_rows: int = 10_000,
        init_deadline_s: float = 60.0,
        close_deadline_s: float = 15.0,
    ) -> None:
        self._config, self._notify, self._module = config, notify, module or _import_wandb
        self._init_deadline_s, self._close_deadline_s = init_deadline_s, close_deadline_s
        self._rows: queue.Queue[Metrics | None] = queue.Queue(max_rows)
        self._thread: threading.Thread | None = None
        self._num_dropped = 0
        self._exit_code = 0

    def start(self, run: RunInfo) -> None:
        self._thread = threading.Thread(target=self._work, args=(run,), name="wandb-sink", daemon=True)
        self._thread.start()

    def phase(self, role: str, text: str) -> None:
        pass

    def step(self, step: int, metrics: Metrics, samples: Sequence[Sample]) -> None:
        try:
            self._rows.put_nowait({**metrics, "train/global_step": step})
        except queue.Full:
            self._num_dropped += 1

    def note(self, text: str) -> None:
        pass

    def close(self, outcome: Outcome) -> None:
        if self._thread is None:
            return
        self._exit_code = 0 if outcome.ok else 1
        try:
            self._rows.put_nowait(None)
        except queue.Full:
            self._num_dropped += 1
        self._thread.join(self._close_deadline_s)
        if self._thread.is_alive():
            self._notify("wandb did not finish in time; metrics.jsonl is complete")
        if self._num_dropped:
            self._notify(f"wandb was too slow: {self._num_dropped} rows are missing there; metrics.jsonl has them")

    def _work(self, run: RunInfo) -> None:
        try:
            reporter = self._module().init(**self._init_arguments(run))
            reporter.define_metric("*", step_metric="train/global_step")
            while (row := self._rows.get()) is not None:
                reporter.log(row)
            reporter.finish(exit_code=self._exit_code)
        except BaseException as error:  # a service that is down, or a library that calls sys.exit
            lines = str(error).strip().splitlines() or [""]
            self._notify(f"wandb is off ({type(error).__name__}: {lines[0]}); metrics.jsonl is still written")
            while self._rows.get() is not None:
                pass  # discard rows until the run closes the sink

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
