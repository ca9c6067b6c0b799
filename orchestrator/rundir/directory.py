"""Run directory: its files, and the lock that gives it to one driver. Two runs never share a directory.

runs/<name>/
  recipe.yaml     as written            resolved.json   resolved config  ledger.jsonl    what is done
  metrics.jsonl   a line per step       exit.json       how it ended     lock            names the driver
  updates.jsonl   a line per update     progress.json   how far it is, while it runs
  incidents.jsonl failures, actions     inputs.json     digests of data, reward code and models of the last attempt
  logs/attempt-N/ (logs/latest)   checkpoints/step-N/   rollouts/step-N/   samples/step-N.parquet   rounds/N/   model/
  evaluations/step-N.parquet      report.html   stop            a request to end the run
  parts/step-N.parquet   data/    in the place of model/, of a run that generates a data set
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from itertools import count
from pathlib import Path
from typing import Any, Self

from orchestrator import disk
from orchestrator.cluster.turn import submission_id
from orchestrator.config.recipe import from_resolved, resolved
from orchestrator.config.run import RunConfig
from orchestrator.config.values import show
from orchestrator.data.sources import local
from orchestrator.errors import BadInput, Problem, ResumeError, redact
from orchestrator.rundir import lock
from orchestrator.rundir.lock import Fence

HOW_IT_RAN = ("checkpoint", "cluster", "report_to", "storage", "wandb")
"""Settings that the model of a complete run does not depend on."""

COMPLETE = ("completed", "budget")
"""Causes in exit.json of a run that is complete: its model is written and there is nothing to resume."""

JOB = "RLHF_JOB"
"""Environment variable with the id of the job that a run belongs to, where its launcher sets it. exit.json has it."""


def in_rounds(settings: Mapping[str, Any]) -> bool:
    """Return whether the steps of a run are rounds of iterative DPO. `settings`: content of resolved.json."""
    algorithm, data = settings.get("algorithm"), settings.get("data")
    if not isinstance(algorithm, Mapping) or not isinstance(data, Mapping):  # the file is damaged
        return False
    return algorithm.get("type") == "dpo" and data.get("prompts") is not None


class RunDirectory:
    """Directory of one run: paths, lock and exit.json. `create` it from a recipe, `open` an existing one."""

    def __init__(self, path: Path) -> None:
        self.path = path

    @classmethod
    def create(cls, config: RunConfig, recipe_text: str) -> Self:
        """Create the directory of `config`, or return the one that an earlier attempt at the same config created.

        Raises:
            BadInput: a run with another config owns the directory, or its name leads out of `output_dir`.
            DiskFailed: the directory cannot be written.
        """
        root = local(config.output_dir).absolute()
        directory = cls(root / config.name)
        if directory.path.is_symlink() or directory.path.parent != root:
            why = "a link would place the run outside output_dir"
            raise BadInput(
                Problem(what="is a symbolic link", where=str(directory.path), why=why, fix="remove the link")
            )
        if directory.path.exists():
            directory._refuse_another(config)
        with disk.explained(directory.path, resume=""):
            disk.make_directory(directory.path)
            if not directory.resolved.exists():  # last, so that a directory with it is complete
                disk.write_atomic(directory.recipe, redact(recipe_text))
                disk.write_atomic(directory.resolved, json.dumps(resolved(config), indent=2) + "\n")
        return directory

    @classmethod
    def open(cls, path: Path) -> Self:
        """Return the directory of a run that was started before.

        Raises:
            ResumeError: `path` is not a run directory.
        """
        directory = cls(local(path).absolute())
        if not os.path.isfile(directory.resolved):  # os.path never raises, whatever the name
            parent = directory.path.parent
            runs = sorted(p.parent.name for p in parent.glob("*/resolved.json")) if os.path.isdir(parent) else []
            fix = f"use a run in {path.parent}: {', '.join(runs[:8])}" if runs else "give a directory like runs/NAME"
            exists = os.path.isdir(directory.path)
            why = f"it has no {directory.resolved.name}" if exists else "no such directory"
            raise ResumeError(Problem(what="not a run directory", where=str(path), why=why, fix=fix))
        return directory

    # ---------------------------------------------------------------------------------------- paths

    @property
    def name(self) -> str:
        return self.path.name

    @property
    def recipe(self) -> Path:
        return self.path / "recipe.yaml"

    @property
    def resolved(self) -> Path:
        return self.path / "resolved.json"

    @property
    def ledger(self) -> Path:
        return self.path / "ledger.jsonl"

    @property
    def metrics(self) -> Path:
        return self.path / "metrics.jsonl"

    @property
    def updates(self) -> Path:
        return self.path / "updates.jsonl"

    @property
    def progress(self) -> Path:
        """Progress of the step in progress; exists only while a driver runs."""
        return self.path / "progress.json"

    @property
    def exit(self) -> Path:
        return self.path / "exit.json"

    @property
    def inputs(self) -> Path:
        return self.path / "inputs.json"

    @property
    def incidents(self) -> Path:
        return self.path / "incidents.jsonl"

    @property
    def model(self) -> Path:
        return self.path / "model"

    @property
    def data(self) -> Path:
        """Directory of the generated data set, of a run that trains nothing."""
        return self.path / "data"

    @property
    def artifact(self) -> Path:
        """Directory that a run has written in the end: of its model, or of its data set."""
        return self.data if self.data.is_dir() else self.model

    def part(self, step: int) -> Path:
        """Return the file with the samples of a step, of a run that trains nothing."""
        return self.path / "parts" / f"step-{step}.parquet"

    @property
    def checkpoints(self) -> Path:
        return self.path / "checkpoints"

    @property
    def rollouts(self) -> Path:
        """Sampled and scored rollouts that a checkpoint may still need."""
        return self.path / "rollouts"

    @property
    def report(self) -> Path:
        return self.path / "report.html"

    @property
    def adapters(self) -> Path:
        """Adapters published to the engines; exists only while a driver runs."""
        return self.path / "adapters"

    @property
    def base(self) -> Path:
        """Initial state of the learners, for rounds that start from it; exists only while a driver runs."""
        return self.path / "base"

    def checkpoint(self, step: int) -> Path:
        return self.checkpoints / f"step-{step}"

    def samples(self, step: int) -> Path:
        return self.path / "samples" / f"step-{step}.parquet"

    def answers(self, step: int) -> Path:
        """Return the file with the scores of each answer to the evaluation prompts."""
        return self.path / "evaluations" / f"step-{step}.parquet"

    def round(self, number: int) -> Path:
        return self.path / "rounds" / str(number)

    def round_model(self, number: int) -> Path:
        """Return the directory of a round's model; exists only for the best round so far."""
        return self.round(number) / "model"

    def rounds_with(self, name: str) -> list[int]:
        """Return the rounds that have a file or directory `name`, in order."""
        return sorted(int(path.parent.name) for path in self.path.glob(f"rounds/[0-9]*/{name}"))

    def reference(self, version: int) -> Path:
        """Return the directory of the reference that holds policy `version`. No version is deleted."""
        return self.path / "reference" / f"version-{version}"

    def logs(self, attempt: int) -> Path:
        return self.path / "logs" / f"attempt-{attempt}"

    # ---------------------------------------------------------------------------------------- reading

    def config(self) -> RunConfig:
        """Return the resolved config of the run.

        Raises:
            BadInput: `resolved.json` was edited and is not a valid config.
            ResumeError: `resolved.json` is not JSON.
        """
        try:
            data = json.loads(self.resolved.read_text("utf-8"))
        except ValueError as error:
            problem = Problem(what="not JSON", where=str(self.resolved), why=str(error), fix="restore the file")
            raise ResumeError(problem) from None
        return from_resolved(data, str(self.resolved))

    @property
    def resume_command(self) -> str:
        try:
            return f"rlhf resume {self.path.relative_to(Path.cwd())}"
        except ValueError:
            return f"rlhf resume {self.path}"

    @property
    def is_complete(self) -> bool:
        """True if the run has ended as planned and its model, or its data set, exists."""
        exit = self.read_exit()
        return exit is not None and exit.get("cause") in COMPLETE and self.artifact.is_dir()

    def read_exit(self) -> dict[str, Any] | None:
        """Return exit.json; None if it is missing or damaged."""
        return _read_object(self.exit)

    def read_progress(self) -> dict[str, Any] | None:
        """Return progress.json; None if it is missing or damaged, or no driver runs."""
        return _read_object(self.progress) if self.holder() is not None else None

    def read_inputs(self) -> dict[str, str] | None:
        """Return the result of `inputs_of` at the start of the last attempt; None if it was not recorded."""
        return _read_object(self.inputs)

    @property
    def last_attempt(self) -> int:
        """Number of the newest attempt; 0 before the first."""
        numbers = [int(p.name.removeprefix("attempt-")) for p in (self.path / "logs").glob("attempt-*")]
        return max(numbers, default=0)

    def holder(self) -> str | None:
        """Return the process that holds the lock, such as `process 4711 on node-3`; None if no process does."""
        return lock.holder(self.path / "lock")

    # ---------------------------------------------------------------------------------------- writing

    def set_aside(self) -> Path:
        """Move the whole run to `NAME.old-1`, or the first such name that is free, and return the new path.

        Raises:
            BadInput: a driver holds the run's lock.
        """
        with self.held():
            taken = {p.name for p in self.path.parent.iterdir()}
            target = self.path.with_name(next(n for i in count(1) if (n := f"{self.name}.old-{i}") not in taken))
            self.path.rename(target)
            disk.sync_directory(target.parent)
        return target

    def start_attempt(self, after: int = 0) -> int:
        """Prepare the directory for the next attempt and return the attempt's number, which is greater than `after`.

        Create its log directory, point `logs/latest` at it, remove exit.json, and delete the partial files of
        interrupted writes.
        """
        attempt = max(self.last_attempt, after) + 1
        for place in (self.path, self.checkpoints, self.reference(0).parent, *self.path.glob("rounds/*")):
            disk.clear(place)
        self.logs(attempt).mkdir(parents=True)
        link = self.path / "logs" / f".latest-{os.getpid()}"
        link.symlink_to(f"attempt-{attempt}")
        link.replace(self.path / "logs" / "latest")
        self.exit.unlink(missing_ok=True)
        return attempt

    def write_exit(self, *, cause: str, message: str, exit_code: int, attempt: int, step: int, **details: Any) -> None:
        """Write exit.json: how the attempt ended, and the command that resumes the run.

        Args:
            cause: "completed", "budget", or the `cause` of an RlhfError.
            step: number of steps committed.
        """
        resume = None if cause in COMPLETE else self.resume_command
        body = {
            "cause": cause,
            "message": message,
            "exit_code": exit_code,
            "attempt": attempt,
            "step": step,
            "resume": resume,
            **({"job": os.environ[JOB]} if JOB in os.environ else {}),
            **details,
        }
        disk.write_atomic(self.exit, redact(json.dumps(body, indent=2)) + "\n")

    @property
    def job(self) -> str | None:
        """Id of the job whose driver holds this directory, or held it last; None if it belonged to no job."""
        return lock.job_of(self.path / "lock")

    def held(self, on_wait: Callable[[str], None] | None = None) -> AbstractContextManager[Fence]:
        """Hold the lock of this directory and yield a fence. See `lock.hold`."""
        return lock.hold(self.path / "lock", on_wait, job=os.environ.get(JOB) or submission_id())

    def differs_from(self, config: RunConfig) -> list[tuple[str, Any, Any]]:
        """Return (key, before, after) of each setting of `config` that differs from the run's.

        In a complete run, settings that its model does not depend on are ignored.
        """
        ignored = HOW_IT_RAN if self.is_complete else ()
        changed = differences(resolved(self.config()), resolved(config))
        return [change for change in changed if change[0].partition(".")[0] not in ignored]

    def _refuse_another(self, config: RunConfig) -> None:
        if not self.resolved.exists():
            foreign = [p for p in self.path.iterdir() if not disk.is_partial(p)]
            if foreign and not self.recipe.exists():
                why, fix = "it contains files that do not belong to a run", "choose a new name, or empty the directory"
                raise BadInput(Problem(what="cannot be used", where=str(self.path), why=why, fix=fix))
            return
        if changed := self.differs_from(config):
            shown = "; ".join(f"{key} was {show(before)} and is {show(after)}" for key, before, after in changed[:6])
            shown += f"; and {len(changed) - 6} more" if len(changed) > 6 else ""
            fix = f"resume the existing run: {self.resume_command}; or choose a new name: name=NAME"
            problem = Problem(what="belongs to a run with another config", where=str(self.path), why=shown, fix=fix)
            raise BadInput(problem)


def _read_object(path: Path) -> dict[str, Any] | None:
    """Return the JSON object in a file; None if the file is missing or holds anything else."""
    try:
        body = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError):
        return None
    return body if isinstance(body, dict) else None


def differences(old: Mapping[str, Any], new: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any, Any]]:
    """Yield (key, before, after) for each value in which two resolved configs differ."""
    for key in sorted({*old, *new}):
        before, after = old.get(key), new.get(key)
        if isinstance(before, Mapping) and isinstance(after, Mapping):
            yield from differences(before, after, f"{prefix}{key}.")
        elif before != after:
            yield f"{prefix}{key}", before, after
