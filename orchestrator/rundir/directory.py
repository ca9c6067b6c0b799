"""The run directory: what is where, and whose it is. Two runs never share one.

runs/<name>/
  recipe.yaml     as written            resolved.json   what ran         ledger.jsonl    what is done
  metrics.jsonl   a line per step       exit.json       how it ended     lock            who is at it
  incidents.jsonl what went wrong       inputs.json     digests of data, reward code and models, of the last attempt
  logs/attempt-N/ (logs/latest)   checkpoints/step-N/   rollouts/step-N/   samples/step-N.parquet   rounds/N/   model/
  evaluations/step-N.parquet      report.html
"""

from __future__ import annotations

import fcntl
import json
import os
import socket
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from itertools import count
from pathlib import Path
from typing import Any, Self

from orchestrator import disk
from orchestrator.config.recipe import from_resolved, resolved
from orchestrator.config.run import RunConfig
from orchestrator.config.values import show
from orchestrator.data.sources import local
from orchestrator.errors import BadInput, Problem, ResumeError, Superseded, redact

Fence = Callable[[], None]
"""Raises Superseded when the run is another driver's."""

HOW_IT_RAN = ("checkpoint", "cluster", "report_to", "wandb")
"""Settings that a complete run does not depend on any more."""

COMPLETE = ("completed", "budget")
"""Causes of an end after which there is a model and nothing to go on with."""


class RunDirectory:
    """Paths of one run. `create` for a recipe, `open` to go on with what is there."""

    def __init__(self, path: Path) -> None:
        self.path = path

    @classmethod
    def create(cls, config: RunConfig, recipe_text: str) -> Self:
        """The directory of `config`: a new one, or the one that an earlier attempt at the same config made.

        Raises:
            BadInput: when another config owns it, or its name leads out of `output_dir`.
            DiskFailed: it cannot be written.
        """
        root = local(config.output_dir).absolute()
        directory = cls(root / config.name)
        if directory.path.is_symlink() or directory.path.parent != root:
            why = "a link would lead the run out of output_dir"
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
        """The directory of a run that was started before.

        Raises:
            ResumeError: when `path` is none.
        """
        directory = cls(local(path).absolute())
        if not os.path.isfile(directory.resolved):  # os.path: a name may be too long, or no name at all
            beside = directory.path.parent
            runs = sorted(p.parent.name for p in beside.glob("*/resolved.json")) if os.path.isdir(beside) else []
            fix = f"in {path.parent} there are: {', '.join(runs[:8])}" if runs else "give a directory like runs/NAME"
            why = (
                f"it has no {directory.resolved.name}"
                if os.path.isdir(directory.path)
                else "there is no such directory"
            )
            raise ResumeError(Problem(what="not a run directory", where=str(path), why=why, fix=fix))
        return directory

    # ---------------------------------------------------------------------------------------- what is where

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
    def checkpoints(self) -> Path:
        return self.path / "checkpoints"

    @property
    def rollouts(self) -> Path:
        """What was sampled and scored, while a checkpoint may still need it."""
        return self.path / "rollouts"

    @property
    def report(self) -> Path:
        return self.path / "report.html"

    @property
    def adapters(self) -> Path:
        """Adapters on their way to the engines, while the run is alive."""
        return self.path / "adapters"

    def checkpoint(self, step: int) -> Path:
        return self.checkpoints / f"step-{step}"

    def samples(self, step: int) -> Path:
        return self.path / "samples" / f"step-{step}.parquet"

    def answers(self, step: int) -> Path:
        """Figures of each answer to the held-out prompts."""
        return self.path / "evaluations" / f"step-{step}.parquet"

    def round(self, index: int) -> Path:
        return self.path / "rounds" / str(index)

    def reference(self, version: int) -> Path:
        """The reference that held policy `version`: kept, so that every round can be looked at again."""
        return self.path / "reference" / f"version-{version}"

    def logs(self, attempt: int) -> Path:
        return self.path / "logs" / f"attempt-{attempt}"

    # ---------------------------------------------------------------------------------------- what it says

    def config(self) -> RunConfig:
        """What ran here. Raises BadInput when `resolved.json` was edited into something else."""
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
        """Whether the run came to its end and its model is there."""
        exit = self.read_exit()
        return exit is not None and exit.get("cause") in COMPLETE and self.model.is_dir()

    def read_exit(self) -> dict[str, Any] | None:
        try:
            found = json.loads(self.exit.read_text("utf-8"))
        except (OSError, ValueError):
            return None
        return found if isinstance(found, dict) else None

    def read_inputs(self) -> dict[str, str] | None:
        """What `inputs_of` said when the last attempt began; None: it was not written down."""
        try:
            found = json.loads(self.inputs.read_text("utf-8"))
        except (OSError, ValueError):
            return None
        return found if isinstance(found, dict) else None

    @property
    def last_attempt(self) -> int:
        """0 when there was none."""
        taken = [int(p.name.removeprefix("attempt-")) for p in (self.path / "logs").glob("attempt-*")]
        return max(taken, default=0)

    def holder(self) -> str | None:
        """Who is at it now, such as `process 4711 on node-3`; None: nobody."""
        try:
            handle = os.open(self.path / "lock", os.O_RDONLY)
        except OSError:
            return None
        try:
            fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return _named(os.read(handle, 400))
        finally:
            os.close(handle)
        return None

    # ---------------------------------------------------------------------------------------- what changes it

    def set_aside(self) -> Path:
        """Move the whole run to `NAME.old-1`, or the first such name that is free; nothing of it is lost.

        Raises:
            BadInput: when a driver is at it.
        """
        with self.held():
            taken = {p.name for p in self.path.parent.iterdir()}
            target = self.path.with_name(next(n for i in count(1) if (n := f"{self.name}.old-{i}") not in taken))
            self.path.rename(target)
            disk.sync_directory(target.parent)
        return target

    def start_attempt(self) -> int:
        """Makes the next log directory, points `logs/latest` at it, takes back the last exit, and clears away what an
        interrupted write left behind."""
        attempt = self.last_attempt + 1
        for place in (self.path, self.checkpoints, self.reference(0).parent):
            disk.clear(place)
        self.logs(attempt).mkdir(parents=True)
        link = self.path / "logs" / f".latest-{os.getpid()}"
        link.symlink_to(f"attempt-{attempt}")
        link.replace(self.path / "logs" / "latest")
        self.exit.unlink(missing_ok=True)
        return attempt

    def write_exit(self, *, cause: str, message: str, exit_code: int, attempt: int, step: int, **details: Any) -> None:
        """How the attempt ended, and how to go on. `cause`: "completed", "budget", or the `cause` of an RlhfError."""
        resume = None if cause in COMPLETE else self.resume_command
        body = {
            "cause": cause,
            "message": message,
            "exit_code": exit_code,
            "attempt": attempt,
            "step": step,
            "resume": resume,
            **details,
        }
        disk.write_atomic(self.exit, redact(json.dumps(body, indent=2)) + "\n")

    @contextmanager
    def held(self) -> Iterator[Fence]:
        """While inside, no other process can hold this directory, as long as its file system keeps the lock. Shared
        storage may let go of it when a machine is cut off, and a driver that was stopped may wake up after that: the
        fence that is yielded raises Superseded as soon as another process has taken the directory.

        Raises:
            BadInput: when another one holds it; names it.
        """
        handle = os.open(self.path / "lock", os.O_RDWR | os.O_CREAT, 0o644)
        try:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                holder = _named(os.read(handle, 400))
                why, fix = f"{holder} is at it", "wait for it or stop it, or give this run another name"
                raise BadInput(Problem(what="is in use", where=str(self.path), why=why, fix=fix)) from None
            # The second line is nobody else's: process 1 of two containers on one machine bear the same name.
            mine = f"process {os.getpid()} on {socket.gethostname()}\n{uuid.uuid4().hex}".encode()
            os.ftruncate(handle, 0)
            os.write(handle, mine)
            os.fsync(handle)

            def fence() -> None:
                with suppress(FileNotFoundError):  # removed, but nobody has taken it
                    found = (self.path / "lock").read_bytes()
                    if found != mine:
                        raise Superseded(str(self.path), _named(found))

            yield fence
        finally:
            os.close(handle)

    def differs_from(self, config: RunConfig) -> list[tuple[str, Any, Any]]:
        """(key, before, after) of each setting that is not what ran here; of a complete run, those that its model comes
        of."""
        found = differences(resolved(self.config()), resolved(config))
        left = HOW_IT_RAN if self.is_complete else ()
        return [each for each in found if each[0].partition(".")[0] not in left]

    def _refuse_another(self, config: RunConfig) -> None:
        if not self.resolved.exists():
            strange = [p for p in self.path.iterdir() if not disk.is_partial(p)]
            if strange and not self.recipe.exists():
                why, fix = "it holds files that are not a run's", "choose a new name, or empty the directory"
                raise BadInput(Problem(what="cannot be used", where=str(self.path), why=why, fix=fix))
            return
        if found := self.differs_from(config):
            shown = "; ".join(f"{key} was {show(before)} and is {show(after)}" for key, before, after in found[:6])
            shown += f"; and {len(found) - 6} more" if len(found) > 6 else ""
            fix = f"go on with what is there: {self.resume_command}; or choose a new name: name=NAME"
            problem = Problem(what="belongs to a run with another config", where=str(self.path), why=shown, fix=fix)
            raise BadInput(problem)


def _named(lock: bytes) -> str:
    """Who a lock says holds it."""
    return lock.decode("utf-8", "replace").partition("\n")[0].strip() or "another process"


def differences(old: Mapping[str, Any], new: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any, Any]]:
    """(key, before, after) of each value that two resolved configs do not share."""
    for key in sorted({*old, *new}):
        before, after = old.get(key), new.get(key)
        if isinstance(before, Mapping) and isinstance(after, Mapping):
            yield from differences(before, after, f"{prefix}{key}.")
        elif before != after:
            yield f"{prefix}{key}", before, after
