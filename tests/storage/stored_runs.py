"""Runs with storage, each attempt in one process that may be killed: the driver and its workers.

Processes are forked from a server that has imported everything but has not used obstore, whose threads a fork lacks.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import random
import shutil
import signal
import time
from collections.abc import Callable, Mapping
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import TYPE_CHECKING, Any

import cpu_run
import psutil

from orchestrator.config import RunConfig
from orchestrator.driver import uploads
from orchestrator.driver.take_over import uploading
from orchestrator.errors import RlhfError
from orchestrator.rundir import stored
from orchestrator.rundir.directory import RunDirectory
from orchestrator.rundir.ledger import Fact, Ledger
from workers.files import mirror

if TYPE_CHECKING:
    from fault_proxy import FaultProxy

LEASE_S = 0.6
SAID = "said"  # file beside the run with the error that ended its newest attempt


def server() -> multiprocessing.context.ForkServerContext:
    """Return the server of forks, with its imports done."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["stored_runs", "orchestrator.driver.driver", "pandas", "peft", "pyarrow.parquet"])
    return context


def config(task: Path, output: Path, storage: str, *, max_steps: int = 3, every: int = 1) -> RunConfig:
    """Return a run of GRPO with a checkpoint after each step, or every few."""
    settings = cpu_run.config(task, output, "grpo", storage=storage)
    algorithm = settings.algorithm.model_copy(update={"max_steps": max_steps})
    checkpoint = settings.checkpoint.model_copy(update={"every": every})
    return settings.model_copy(update={"algorithm": algorithm, "checkpoint": checkpoint})


def generating(task: Path, output: Path, storage: str | None) -> RunConfig:
    """Return a run that writes a data set of six steps."""
    return cpu_run.config(task, output, "generate", **({"storage": storage} if storage else {}))


def start(settings: RunConfig, environment: Mapping[str, str]) -> BaseProcess:
    """Start an attempt in a process, whose exit code is that of `rlhf run`."""
    process = server().Process(target=_attempt, args=(settings.model_dump_json(), dict(environment)))
    process.start()
    return process


def run(settings: RunConfig, environment: Mapping[str, str], within_s: float = 120.0) -> int:
    """Run an attempt in a process and return its exit code, negative if a signal ended it."""
    process = start(settings, environment)
    process.join(within_s)
    assert process.exitcode is not None, f"still there after {within_s} s"
    return process.exitcode


def eventually(condition: Callable[[], bool], within_s: float = 60.0) -> bool:
    until = time.monotonic() + within_s
    while not (held := condition()) and time.monotonic() < until:
        time.sleep(0.02)
    return held


def kill_at(
    settings: RunConfig, environment: Mapping[str, str], proxy: FaultProxy, number: int, *, after: bool = False
) -> None:
    """Kill a run when its PUT of this number is asked for, or is answered."""
    seen = 0

    def count(method: str, path: str) -> None:
        nonlocal seen
        seen += method == "PUT"
        if method == "PUT" and seen == number:
            os.kill(process.pid or 0, signal.SIGKILL)
            assert eventually(lambda: not psutil.pid_exists(process.pid or 0))  # it may not ask again

    setattr(proxy, "after" if after else "before", count)
    process = start(settings, environment)
    process.join(120)
    assert process.exitcode in (-signal.SIGKILL, 0)
    proxy.heal()


def said(directory: Path) -> str:
    """Return the error that ended the newest attempt at a run."""
    return (directory.parent / SAID).read_text()


def drive(settings: RunConfig, environment: Mapping[str, str], commits: int, seed: int) -> BaseProcess:
    """Start a driver that only writes records: it takes the run over and commits steps, with random pauses."""
    process = server().Process(target=_drive, args=(settings.model_dump_json(), dict(environment), commits, seed))
    process.start()
    return process


def _prepared(text: str, environment: Mapping[str, str]) -> RunConfig:
    settings = RunConfig.model_validate_json(text)
    assert settings.storage is not None
    os.environ.update(environment)
    os.environ.update(mirror.environment(settings.storage, Path(settings.output_dir).absolute()))
    stored.LEASE_S, stored.POLL_S = LEASE_S, LEASE_S / 4
    uploads.RENEW_S, uploads.TICK_S, uploads.LOOK_S, uploads.BEHIND_S = LEASE_S / 8, 0.02, 0.05, 1.0
    mirror.RETRY_S = uploads.RETRY_S = (0.1, 0.2)
    return settings


def _attempt(text: str, environment: Mapping[str, str]) -> None:
    settings = _prepared(text, environment)
    try:
        cpu_run.run(settings)
    except RlhfError as error:
        Path(settings.output_dir, SAID).write_text(str(error))
        os._exit(error.exit_code)
    os._exit(0)


def _drive(text: str, environment: Mapping[str, str], commits: int, seed: int) -> None:
    settings, draw = _prepared(text, environment), random.Random(seed)
    stored.StoredRun.wait_for_holder = lambda *_, **__: None  # type: ignore[method-assign] # both believe they are alone
    directory = RunDirectory.create(settings, "")
    try:
        with (
            directory.held() as lock,
            uploading(settings, directory, lock) as (sends, fence),
            Ledger.open(directory.ledger, fence) as ledger,
        ):
            assert sends is not None
            number = directory.start_attempt(after=max((record.attempt for record in ledger.records), default=0))
            sends.follow(ledger)
            done = sum(record.fact == Fact.committed for record in ledger.records)
            ledger.append(Fact.attempt, attempt=number, step=done)
            for step in range(done + 1, commits + 1):
                time.sleep(draw.choice((0.0, 0.0, 0.01, 0.05)))
                ledger.append(Fact.committed, attempt=number, step=step, by=os.getpid())
            sends.flush()
            fence()
    except RlhfError as error:
        os._exit(error.exit_code)
    os._exit(0)


def manifests(storage: Any) -> dict[str, Mapping[str, Any]]:
    """Return the manifests of checkpoints and models in a store, by the name of their directory."""
    names = [name for name in storage.sizes("") if name.endswith("/manifest.json")]
    return {name.rpartition("/")[0]: json.loads(storage.get(name) or b"{}") for name in names}


def missing(storage: Any) -> list[str]:
    """Return the objects that a manifest names, and that are not in the store in their size."""
    sizes = storage.sizes("")
    return [
        f"{directory}/{name}"
        for directory, manifest in manifests(storage).items()
        for name, file in manifest["files"].items()
        if sizes.get(f"{directory}/{name}") != file["bytes"]
    ]


def remove(directory: Path) -> None:
    """Remove what a machine has of a run."""
    shutil.rmtree(directory, ignore_errors=True)
